"""Keeps the tensors of a model's modules as they were, around runs of the uncompiled model.

vLLM compiles a model and captures it in CUDA graphs. Both hold on to the tensors of its modules, by
type or by address. Some modules exchange a tensor when they run uncompiled, and keep the new one. A
rotary embedding converts its table to the queries' type then (sources of 0.32.0 and 0.33.0:
``model_executor/layers/rotary_embedding/base.py``, ``_match_cos_sin_cache_dtype``). The table of
gpt-oss has 32 bits and its queries have 16: compiled code would read the new table as the old one,
up to beyond its end, and CUDA graphs would read memory that was given back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a module keeps a tensor."""

    holder: dict[str, Any]
    name: str

    @property
    def tensor(self) -> Any:
        return self.holder.get(self.name)


@dataclass(frozen=True, slots=True, eq=False)
class _Exchanged:
    """What an uncompiled run has put in the place of a tensor."""

    place: _Place
    before: Any
    after: Any


class ModelTensors:
    """The tensors of a model's modules, each in one place.

    Args:
        model: as vLLM has loaded it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            _Place(holder, name)
            for module in model.modules()
            for holder in (module._parameters, module._buffers, module.__dict__)
            for name, value in holder.items()
            if isinstance(value, torch.Tensor) or holder is module._buffers
        ]
        self._exchanged: list[_Exchanged] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Have the places hold what they held before, whatever a run puts there.

        What the first run has put there is lent to all later ones, so that none makes it again: its
        time would count as the run's. It is never given up: CUDA graphs of these runs read it.
        """
        before = [place.tensor for place in self._places]
        for one in self._exchanged:
            if one.place.tensor is one.before:
                one.place.holder[one.place.name] = one.after
        try:
            yield
        finally:
            for place, tensor in zip(self._places, before, strict=True):
                if place.tensor is not tensor:
                    self._put_back(place, tensor)

    def _put_back(self, place: _Place, before: Any) -> None:
        if not any(one.place is place and one.before is before for one in self._exchanged):
            self._exchanged.append(_Exchanged(place, before, place.tensor))
        place.holder[place.name] = before
