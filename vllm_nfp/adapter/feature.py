"""One feature of a model or a server, and what the probe does with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllm_nfp.adapter.versions import Mode


class Kind(StrEnum):
    """Which of the tables a feature is in."""

    MODEL = "models"
    PARALLEL = "parallelism"
    SERVER = "serving"


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that a model has, or that flags switch on."""

    name: str
    kind: Kind
    holds: Callable[[Any], bool]
    """Whether a server has it, by vLLM's configuration."""
    mode: Mode
    why: str
    """Active: how it is probed. Otherwise the reason, and what to do without the feature; braces
    take the place of :attr:`value`."""
    value: Callable[[Any], object] | None = None
    """What the reason names."""
    placeholder: str = "N"
    """What stands for it in the docs."""
    flag: str = ""
    """What switches it on; empty if the model's configuration does."""
    needs: str = ""
    """What its user has to see to; the probe cannot."""
    step: str = ""
    """What a timed step contains, where that is more or less than a decode step."""
    unpredicted: str = ""
    """What of it the predictor does not know; empty if predictions are made as without it."""

    def reason(self, config: Any) -> str:
        """Why, of this server."""
        return self.why if self.value is None else self.why.format(self.value(config))

    @property
    def explained(self) -> str:
        """Why, of any server."""
        return self.why if self.value is None else self.why.format(self.placeholder)
