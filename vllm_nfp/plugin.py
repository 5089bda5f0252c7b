"""The ``vllm.general_plugins`` entry point: does nothing unless the probe is asked for.

vLLM loads it once in every process: the command line, the API servers, the engine core and the
workers. Without the probe this module imports nothing, of vLLM or of others, so that such a server
is untouched.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm_nfp.env_var import ENV_VAR

if TYPE_CHECKING:
    from vllm_nfp.adapter.observer import StepObserver
    from vllm_nfp.config import ProbeConfig


def wanted(argv: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether this process may need the probe.

    True when the environment carries settings (of the process that has switched the probe on, or
    of an earlier run, which flags then replace), and when the command line speaks of the probe,
    asks for help, or names a file that may hold its flags.
    """
    if environ.get(ENV_VAR):
        return True
    return any(arg.startswith(("--nfp", "--help", "--config")) or arg == "-h" for arg in argv[1:])


def register() -> None:
    """Called by vLLM; installs the flags and, once the probe is on, its hooks."""
    if not wanted(sys.argv, os.environ):
        return
    from vllm_nfp.adapter.install import install

    install(open_observer)


def open_observer(config: ProbeConfig, vllm_config: Any) -> StepObserver:
    """What observes a worker's steps; imported where a worker lives, and there alone."""
    begun = time.monotonic()
    from vllm_nfp.session import open_session

    return open_session(config, vllm_config, begun)
