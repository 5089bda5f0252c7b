"""What was seen, compressed: a few hundred numbers with their variances."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_nfp.types import Module, Shape


@dataclass(frozen=True, slots=True)
class Ratio:
    """log t(N) / t(1) of a module at a shape, from pairs."""

    module: Module
    shape: Shape
    log_ratio: float
    variance: float
    samples: int
    """Pairs of this server that it comes from; 0 for those of an earlier profile."""
    torn: bool = False
    """They do not agree: the center may lie anywhere between."""
    content: bool = True
    """The KV blocks that were read had content, or it does not matter."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Median time of real steps of a shape. A factor common to all of them is not known."""

    shape: Shape
    log_seconds: float
    variance: float


@dataclass(frozen=True, slots=True)
class Baseline:
    """log t(1) of a module, in seconds, as the probe times it: of one layer, or the whole step."""

    module: Module
    batch_size: int
    context: int
    log_seconds: float
    variance: float
    content: bool = True
    """As of :class:`Ratio`."""


@dataclass(frozen=True, slots=True)
class Observations:
    """All that the posterior is made from."""

    ratios: tuple[Ratio, ...] = ()
    steps: tuple[StepTime, ...] = ()
    baselines: tuple[Baseline, ...] = ()

    def __add__(self, others: Observations) -> Observations:
        """Both, as when an earlier profile of the same model and device starts a surface warm."""
        return Observations(
            self.ratios + others.ratios,
            self.steps + others.steps,
            self.baselines + others.baselines,
        )

    def doubted(self, variance: float) -> Observations:
        """The same with so much more variance."""
        return Observations(
            tuple(replace(r, variance=r.variance + variance) for r in self.ratios),
            tuple(replace(s, variance=s.variance + variance) for s in self.steps),
            tuple(replace(b, variance=b.variance + variance) for b in self.baselines),
        )
