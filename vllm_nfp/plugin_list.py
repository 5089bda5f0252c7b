"""VLLM_PLUGINS, the list of the plugins that vLLM loads, and whether ours is on it."""

from __future__ import annotations

from collections.abc import Mapping

NAME = "nfp"
"""Of the entry point."""
ALLOWED = "VLLM_PLUGINS"
"""vLLM's variable: the names of the plugins that it loads, with commas between; all if unset."""


def excluded(environ: Mapping[str, str]) -> bool:
    """Whether VLLM_PLUGINS keeps vLLM from loading this plugin; vLLM strips no spaces."""
    allowed = environ.get(ALLOWED)
    return allowed is not None and NAME not in allowed.split(",")


def with_plugin(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to set so that a vLLM in this environment loads the plugin; empty if it does."""
    if not excluded(environ):
        return {}
    return {ALLOWED: ",".join(name for name in (environ[ALLOWED], NAME) if name)}
