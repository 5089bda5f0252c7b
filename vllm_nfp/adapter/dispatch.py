"""How vLLM would run a decode step of B sequences x N positions: graph, padding, or neither.

The rules are those of the V2 runner for a server whose draft length is N - 1: such a server
captures uniform decode graphs for N positions (:mod:`vllm_nfp.principle.graphs`). They hold for
the V1 runner too, which adjusts its capture sizes to such multiples when speculation is
configured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from vllm_nfp.principle.graphs import CapturedGraphs


class Execution(StrEnum):
    """How a step is launched."""

    FULL = "full"
    """One CUDA graph for the whole forward pass."""
    PIECEWISE = "piecewise"
    """CUDA graphs between the attention calls."""
    NONE = "none"
    """No graph: every kernel is launched by the host."""


@dataclass(frozen=True, slots=True)
class GraphRules:
    """What the server's configuration says about CUDA graphs."""

    full_decode: bool
    """Decode batches run as FULL graphs."""
    full_mixed: bool
    """Mixed batches do as well, in graphs that fit any split of their tokens."""
    piecewise: bool
    multi_position: bool
    """The attention backends allow FULL graphs for more than one position per sequence."""
    graphs: CapturedGraphs
    """PIECEWISE graphs have these sizes unrounded."""
    max_num_seqs: int

    @property
    def capture_sizes(self) -> tuple[int, ...]:
        """Ascending, in tokens."""
        return self.graphs.sizes


NO_GRAPHS = GraphRules(
    full_decode=False,
    full_mixed=False,
    piecewise=False,
    multi_position=False,
    graphs=CapturedGraphs(),
    max_num_seqs=1,
)


@dataclass(frozen=True, slots=True)
class Placement:
    """A step as it would be launched, padding included."""

    execution: Execution
    padded_tokens: int
    padded_sequences: int


def place(rules: GraphRules, batch_size: int, positions: int) -> Placement:
    """Where a step of ``batch_size`` sequences x ``positions`` positions would run.

    A step that fits no FULL graph runs in a PIECEWISE one, or else in none. That slows it down, so
    that the end of the graphs is a boundary like that of a kernel.
    """
    tokens = batch_size * positions
    if rules.full_decode and (positions == 1 or rules.multi_position):
        padded = _full_size(rules, batch_size, positions)
        if padded is not None:
            return Placement(Execution.FULL, *padded)
    fitting = rules.graphs.size_for(tokens)
    if rules.piecewise and fitting is not None:
        return Placement(Execution.PIECEWISE, fitting, batch_size)
    return Placement(Execution.NONE, tokens, batch_size)


def execution_of(rules: GraphRules) -> Callable[[int, int], str]:
    """How a step of (batch size, positions) runs; looked up once for each."""
    return cache(lambda batch_size, positions: str(place(rules, batch_size, positions).execution))


def _full_size(rules: GraphRules, batch_size: int, positions: int) -> tuple[int, int] | None:
    """Tokens and sequences of the smallest FULL graph that holds the step."""
    graphs = rules.graphs
    if rules.full_mixed or positions <= graphs.any_mix_up_to:
        size = graphs.size_for(batch_size * positions)
        return None if size is None else (size, min(size, rules.max_num_seqs))
    size = graphs.padded_tokens(batch_size, positions)
    if size is None or size // positions > rules.max_num_seqs:
        return None
    return size, size // positions
