"""All contact with vLLM's internals: flags, hooks, probe batches, graphs, the bridge to /metrics.

No other package imports vLLM, so that an upgrade of vLLM changes one place.
"""
