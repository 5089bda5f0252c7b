"""The environment variable that carries the probe's settings.

A module of its own: vLLM loads the plugin in each of its processes, and a process without the probe
imports no other module of this package.
"""

from __future__ import annotations

ENV_VAR = "NFP_PROBE_CONFIG"
"""Carries the settings as JSON from the command line to the engine.

vLLM's ``additional_config`` is not used: it is part of the key of the compile cache, so turning the
probe on would recompile the model.
"""
