"""Has vLLM carry the probe's settings to Ray's workers and engines.

Ray's own processes start them, and these inherit nothing from the server. vLLM copies environment
variables by name. ``VLLM_RAY_EXTRA_ENV_VARS_TO_COPY`` would add a name, but vLLM makes it a part of
the compile cache's key: turning the probe on would recompile the model.
"""

from __future__ import annotations

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.env_var import ENV_VAR


class _Names(set[str]):
    """Names of variables; other than a plain set it can be marked as a replacement."""


def carry_settings(patches: PatchSet) -> None:
    """Add the variable with the settings to those that vLLM copies."""
    patches.wrap(targets.RAY_VARIABLES, lambda names: _Names({*names, ENV_VAR}))
