"""Lets the routers of a model's experts tell which experts a real step chose.

vLLM's routers call a function with the chosen experts if they hold one (``BaseRouter.capture_fn``,
``model_executor/layers/fused_moe/router/base_router.py``). They do so within the opaque operator of
the experts, so that compiled code calls it as well, and a CUDA graph that is replayed does not. The
function is set for one step at a time, on steps that run anyway, and only reads what it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.runner import RunnerView

OnChoice = Callable[[int, torch.Tensor], None]
"""Takes the place of a layer among those that are asked, and its experts: [tokens, a token's]."""


class NotCountedError(RuntimeError):
    """The choices of this model's routers cannot be read here; the message says why."""


@dataclass(frozen=True, slots=True)
class Routers:
    """The routers of some layers, with the same number of experts."""

    asked: tuple[Any, ...]
    """vLLM's routers."""
    num_experts: int
    """Of the model, without copies that balance the load."""
    experts_per_token: int

    def listen(self, on_choice: OnChoice) -> None:
        """Have each call the function as it chooses, until :meth:`release`.

        The function must not raise: it runs inside the server's step.
        """
        for place, router in enumerate(self.asked):
            router.set_capture_fn(_of_layer(on_choice, place))

    def release(self) -> None:
        """Have them call nobody."""
        for router in self.asked:
            router.set_capture_fn(None)


def routers_of(view: RunnerView, most_layers: int) -> Routers | None:
    """The routers of layers spread over the model; None for a model without experts.

    Raises:
        NotCountedError: if their choices cannot be read here.
    """
    config = view.vllm_config
    if not config.compilation_config.static_all_moe_layers:
        return None
    if not versions.is_since(versions.EXPERT_CHOICES):
        raise NotCountedError("choices of experts are not known in this release of vLLM")
    if config.parallel_config.data_parallel_size > 1:
        raise NotCountedError("tokens of several engines meet at the experts")
    layers = _layers_of(view.model)
    return _of(layers, most_layers)


def _layers_of(model: Any) -> list[Any]:
    """vLLM's layers of experts; those of a drafting model are no part of the model."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    return [module for module in model.modules() if isinstance(module, MoERunner)]


def _of(layers: Sequence[Any], most_layers: int) -> Routers:
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    asked = [
        layer
        for layer in layers
        if isinstance(layer.router, BaseRouter) and not layer.is_monolithic
    ]
    if not asked:
        raise NotCountedError("the experts' kernels of this server choose the experts themselves")
    if any(layer.router.capture_fn is not None for layer in asked):
        raise NotCountedError("--enable-return-routed-experts reads the routers' choices already")
    kinds = Counter((_experts_of(layer), int(layer.router.top_k)) for layer in asked)
    kind = kinds.most_common(1)[0][0]
    alike = [layer for layer in asked if (_experts_of(layer), int(layer.router.top_k)) == kind]
    chosen = _spread(alike, most_layers)
    return Routers(tuple(layer.router for layer in chosen), *kind)


def _experts_of(layer: Any) -> int:
    return int(layer.moe_config.num_logical_experts)


def _spread(layers: Sequence[Any], most: int) -> list[Any]:
    """As many of them, from the first to the last."""
    if len(layers) <= most:
        return list(layers)
    step = (len(layers) - 1) / (most - 1)
    return [layers[round(place * step)] for place in range(most)]


def _of_layer(on_choice: OnChoice, place: int) -> Callable[[torch.Tensor], None]:
    return lambda ids: on_choice(place, ids)
