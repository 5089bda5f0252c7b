"""Keeps probes out of the statistics that vLLM's expert load balancing goes by.

Routers count the tokens of each expert in every forward pass, in CUDA graphs as well, as long as a
flag in the GPU's memory is set (``should_record_tensor``, ``distributed/eplb/eplb_state.py``). vLLM
clears it around its own warm-up, and so does a probe. It is cleared and put back on the stream that
steps run on, so that nobody waits, and the steps before and after are counted. A probe takes no
part in the balancing itself: vLLM does that at the end of each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vllm_nfp.adapter.bindings import UnknownVllmError, unlike_known
from vllm_nfp.adapter.runner import RunnerView


class ExpertLoads:
    """The flag of a runner; there is none without ``--enable-eplb``.

    Args:
        view: the runner.

    Raises:
        UnknownVllmError: if this vLLM keeps it elsewhere.
    """

    def __init__(self, view: RunnerView) -> None:
        self._flag: torch.Tensor | None = None
        if view.vllm_config.parallel_config.enable_eplb:
            try:
                self._flag = _flag_of(view.runner.eplb_state)
            except AttributeError as error:
                raise UnknownVllmError(unlike_known(str(error))) from error
        self._kept = None if self._flag is None else torch.empty_like(self._flag)
        self._unrecorded = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the model as vLLM does, but count nothing."""
        with torch.inference_mode(), self.unrecorded():
            yield

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Count no token of what is enqueued while the context lasts; may be nested."""
        if self._flag is None or self._kept is None or self._unrecorded:
            yield
            return
        self._unrecorded = True
        self._kept.copy_(self._flag)
        self._flag.fill_(False)
        try:
            yield
        finally:
            self._flag.copy_(self._kept)
            self._unrecorded = False


def _flag_of(state: Any) -> torch.Tensor | None:
    """None where no layer is balanced."""
    flag: torch.Tensor | None = None if state is None else state.should_record_tensor
    return flag
