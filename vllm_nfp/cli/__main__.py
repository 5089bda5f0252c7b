"""``python -m vllm_nfp.cli``."""

from vllm_nfp.cli import main

main(prog_name="vllm-nfp")
