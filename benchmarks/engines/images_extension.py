"""vLLM's ``--worker-extension-cls`` of ``images``: wider weights, and an end of the probe.

Imported by workers alone, before they load the model.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

from benchmarks.answers.truth_extension import TruthServer
from benchmarks.serving.wide_weights import widen


def _widen_after_loading() -> None:
    original = DummyModelLoader.load_weights

    @functools.wraps(original)
    def loaded(self: Any, model: torch.nn.Module, *rest: Any, **named: Any) -> None:
        original(self, model, *rest, **named)
        widen(model)

    DummyModelLoader.load_weights = loaded


_widen_after_loading()


class ImageServer(TruthServer):
    """The methods of the class that it extends."""
