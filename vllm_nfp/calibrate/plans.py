"""One model's part of a calibration: which kernels are timed, and at which points."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vllm_nfp.calibrate.points import Kernel, Series

PASSES = 5
MAX_TOKENS = 2048
"""Tokens of the largest step."""
MAX_SEQS = 256
MAX_MODEL_LEN = 17408
ATTENTION_TILE = 64
"""Rows between the steps of most attention kernels; only the choice of points depends on it."""
TOKENS = tuple(
    sorted(
        {
            *range(1, 65),
            *range(72, 257, 8),
            *(edge + 1 for edge in (64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384)),
            *range(272, 513, 16),
            *range(576, 1025, 64),
        }
    )
)
"""Tokens of a step, for kernels that see nothing else."""
CELLS = (
    *((b, 1024) for b in (1, 8, 32, 128)),
    *((b, 4096) for b in (1, 8, 32)),
    *((b, 16384) for b in (1, 8)),
)
"""(batch size, context) of attention; the KV cache of a plan must hold the largest product."""
BLOCK_CELLS = ((1, 4096), (8, 4096), (32, 1024))
"""The same for blocks whose positions see one another, as in diffusion decoding."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model's part of a calibration.

    Attributes:
        label: name of its file and its place in messages; letters, digits, dots and hyphens.
        config: its config.json.
        kernels: what is timed.
        kv_tokens: tokens that the KV cache must hold.
        arguments: further arguments of ``vllm.LLM``, such as a quantization.
        small: few points and a small cache, for a trial on a CPU.
    """

    label: str
    config: Mapping[str, Any]
    kernels: tuple[Kernel, ...] = tuple(Kernel)
    kv_tokens: int = 160_000
    arguments: Mapping[str, Any] = field(default_factory=dict)
    small: bool = False

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        given = self.config.get("head_dim")
        return int(given or self.config["hidden_size"] // self.config["num_attention_heads"])

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of the KV cache, all layers, in 16 bits."""
        token_bytes = 4 * self.config["num_key_value_heads"] * self.head_dim
        return int(self.config["num_hidden_layers"] * token_bytes * self.kv_tokens)

    @property
    def fp8(self) -> bool:
        """Whether it needs a device with FP8."""
        return "fp8" in (self.arguments.get("quantization"), self.arguments.get("kv_cache_dtype"))

    def to_json(self) -> str:
        """The plan as JSON that :meth:`from_json` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelPlan:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "kernels": tuple(Kernel(k) for k in values["kernels"])})


class KnowsModules(Protocol):
    """The part of a bench that the choice of series depends on."""

    def has(self, kernel: Kernel) -> bool:
        """Whether the model has such a module."""
        ...

    def linear_names(self) -> tuple[str, ...]:
        """Names of the linear layers that all layers have."""
        ...


def series_of(bench: KnowsModules, plan: ModelPlan) -> Iterator[tuple[Series, Sequence[int]]]:
    """What is timed of a model, and at which N."""
    tokens: Sequence[int] = (1, 2, 4, 8) if plan.small else TOKENS
    for kernel in (Kernel.DENSE_FFN, Kernel.MOE_FFN, Kernel.LM_HEAD):
        if kernel in plan.kernels and bench.has(kernel):
            yield Series(kernel), tokens
    for name in bench.linear_names() if Kernel.LINEAR in plan.kernels else ():
        yield Series(Kernel.LINEAR, name=name), tokens
    if Kernel.ATTENTION in plan.kernels:
        yield from _attention(plan)


def _attention(plan: ModelPlan) -> Iterator[tuple[Series, Sequence[int]]]:
    group = plan.config["num_attention_heads"] // plan.config["num_key_value_heads"]
    positions = (1, 2, 4) if plan.small else attention_positions(group)
    for batch_size, context in ((1, 64), (2, 128)) if plan.small else CELLS:
        yield Series(Kernel.ATTENTION, batch_size, context), positions
    for batch_size, context in ((1, 64),) if plan.small else BLOCK_CELLS:
        yield Series(Kernel.ATTENTION, batch_size, context, causal=False), positions


def attention_positions(group: int) -> tuple[int, ...]:
    """N for attention with ``group`` query heads per KV head: dense, with each step's two sides."""
    edges = [math.floor(ATTENTION_TILE * k / group) for k in range(1, 9)]
    near = {n for edge in edges for n in (edge, edge + 1) if 1 <= n <= 129}
    return tuple(sorted({*range(1, 18), *range(18, 41, 2), *range(44, 65, 4), 80, 96, 128, *near}))
