"""Random weights with which a model's greedy answers depend on all that it has read.

vLLM's dummy weights come from one random seed, within 0.001: all layers are alike, the LM head is
the embedding, and greedy decoding repeats one token whatever is in a picture. Equal answers of such
a model would tell nothing. Its routers choose the same few experts for nearly every token; with
wide weights each token chooses its own, more evenly than a trained model's.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

WIDE_VARIABLE = "NFP_BENCH_WIDE_WEIGHTS"
"""Environment variable of a server whose extension may widen its weights: 1 does."""

SPREAD = 1.5
"""Standard deviation of what a product gives for inputs of deviation 1: attention then prefers some
of the tokens. The weights of the tests' models are as wide (tests/engine/kinds.py: 1.2 to 1.7)."""


def widen(model: torch.nn.Module) -> None:
    """Give all weights new values: matrices random ones, biases 0, other vectors (of norms) 1.

    The same model gets the same values each time.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for name, weight in model.named_parameters():
        if not weight.is_floating_point():
            continue
        if weight.dim() < 2:
            weight.data.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        if weight.device not in generators:
            generators[weight.device] = torch.Generator(weight.device).manual_seed(0)
        inputs = weight.numel() // weight.shape[0]
        spread = 1.0 if "embed_tokens" in name else SPREAD / inputs**0.5
        weight.data.normal_(std=spread, generator=generators[weight.device])


def widen_if_asked() -> None:
    """Do as the environment variable says; called by workers, before they load the model."""
    if os.environ.get(WIDE_VARIABLE) == "1":
        widen_after_loading()


def widen_after_loading() -> None:
    """Widen what vLLM's dummy loader makes in this process from now on."""
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    original = DummyModelLoader.load_weights

    @functools.wraps(original)
    def loaded(self: Any, model: torch.nn.Module, *rest: Any, **named: Any) -> None:
        original(self, model, *rest, **named)
        widen(model)

    DummyModelLoader.load_weights = loaded
