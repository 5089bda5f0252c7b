"""All that knows vLLM's names: patch targets, flags, views of runners, facts by release.

No other package imports vLLM, so that a new release of vLLM changes one place.
"""
