"""VLLM_PLUGINS, the list of plugins that vLLM loads, and whether it excludes this one."""

from __future__ import annotations

from collections.abc import Mapping

NAME = "nfp"
"""Name of the entry point."""
ALLOWED = "VLLM_PLUGINS"
"""vLLM's variable: comma-separated names of the plugins that it loads; all if unset."""


def excluded(environ: Mapping[str, str]) -> bool:
    """Whether VLLM_PLUGINS excludes this plugin; vLLM strips no spaces."""
    allowed = environ.get(ALLOWED)
    return allowed is not None and NAME not in allowed.split(",")


def with_plugin(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to set so that vLLM loads the plugin; empty if it does already."""
    if not excluded(environ):
        return {}
    return {ALLOWED: ",".join(name for name in (environ[ALLOWED], NAME) if name)}
