"""vllm-nfp: how many positions per sequence a live vLLM server decodes for free."""

__version__ = "0.1.0"
