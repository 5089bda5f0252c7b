"""Starts child processes and vLLM servers.

``demo``, ``measure``, ``calibrate``, the benchmarks and the tests start nothing by themselves.
Engines in the calling process are in :mod:`vllm_nfp.adapter.engines`, which imports vLLM.
"""
