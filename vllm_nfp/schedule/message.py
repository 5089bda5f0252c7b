"""What ranks exchange: a few integers of each, of which all get the maxima."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.schedule.pair import Pair
from vllm_nfp.types import Shape

VALUES = 14
"""Integers of each rank's part."""


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's part of an exchange."""

    number: int
    """Of the exchange, counted from 1."""
    digest: int
    """Of what all ranks must have alike."""
    fault: int = 0
    """1 + the rank, if it has a fault."""
    refused: bool = False
    """It cannot do what was asked."""
    bid: int = 0
    """Above 0 if it wants to propose a pair; see :mod:`vllm_nfp.schedule.turns`."""
    held: bool = False
    """No pair may be proposed now."""
    amount: int = 0
    pair: Pair | None = None
    """Proposed; of one rank alone."""

    def values(self) -> tuple[int, ...]:
        """The integers; those that must be equal go with their negatives."""
        shape = (0, 0, 0, 0, 0)
        if self.pair is not None:
            target, first = self.pair.target, int(self.pair.baseline_first)
            shape = (target.batch_size, target.context, target.positions, first, self.pair.draw)
        equal = (self.number, -self.number, self.digest, -self.digest)
        said = (self.fault, int(self.refused), self.bid, int(self.held), self.amount)
        return (*equal, *said, *shape)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an exchange says, the same on every rank."""

    numbers: tuple[int, int]
    """The lowest and the highest number; equal unless a rank has missed an exchange."""
    alike: bool
    """All digests are equal."""
    fault: int
    """1 + the last rank that has a fault; 0: none has one."""
    refused: bool
    """Some rank cannot do what was asked."""
    bid: int
    """The highest."""
    held: bool
    """Some rank holds pairs off."""
    amount: int
    """The highest."""
    pair: Pair | None


def outcome_of(values: Sequence[int]) -> Outcome:
    """The maxima over all ranks of :meth:`Part.values`."""
    most, least_negated, digest, digest_negated, fault, refused, bid, held, amount, *pair = values
    batch_size, context, positions, first, draw = pair
    target = Shape(batch_size, context, positions)
    return Outcome(
        (-least_negated, most),
        digest == -digest_negated,
        fault,
        bool(refused),
        bid,
        bool(held),
        amount,
        Pair(target, bool(first), draw) if batch_size else None,
    )
