"""Runs one shape: batch, forward pass, CUDA graphs, and the proof that nothing live is written."""
