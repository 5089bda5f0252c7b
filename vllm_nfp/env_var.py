"""The environment variable by which the probe's settings travel.

A module of its own: vLLM loads the plugin in each of its processes, and a process without the
probe loads nothing else of this package.
"""

from __future__ import annotations

ENV_VAR = "NFP_PROBE_CONFIG"
"""Environment variable that carries the settings, as JSON, from the command line to the engine.

An environment variable and not vLLM's ``additional_config``: that one enters the hash of the
compile cache, so that switching the probe on would recompile the model.
"""
