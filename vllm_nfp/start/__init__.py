"""Starts what measures: child processes, vLLM servers, engines in this process.

``demo``, ``measure``, ``calibrate``, the benchmarks and the tests start nothing by themselves.
:mod:`vllm_nfp.start.engine` is the only module here that imports vLLM.
"""
