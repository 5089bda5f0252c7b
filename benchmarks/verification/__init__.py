"""vLLM's adaptive verification with measured costs, and the recorded drafts that it meets."""
