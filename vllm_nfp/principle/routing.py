"""How tokens reach experts: how many a step wakes, and the blocks that their rows fill."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vllm_nfp.principle.terms import FloatArray

IntArray = npt.NDArray[np.int64]

MAX_GROUPS = 32
"""Experts of like share are counted together, so that a scan of positions stays fast."""
_WINDOW_DEVIATIONS = 5.0
_WINDOW_BLOCKS = 8

TYPICAL_SKEW = 0.75
"""Exponent of the routing that ``typical`` names: shares fall with rank ** -0.75. Of the exponents
0, 0.25, ... 1 the one with which most public times of routed experts under power-law routers
(aiconfigurator 0.12, H100 and H200, BF16) come within 10 % (docs/validation.md)."""
MOST_SKEW = 2.0
SKEW_STEP = 0.05
"""Exponents are tried in steps of this; neighbours differ by less than 1 % of a step's time."""


class ExpertError(ValueError):
    """Routing, tiles or constants that cannot be; the message names the value."""


class Routed(Protocol):
    """What the kernels ask of a rank's experts, by chances or as a benchmark drew them."""

    @property
    def num_experts(self) -> int:
        """Experts of which the rank holds weights: ModelShape.local_experts."""

    @property
    def experts_per_token(self) -> float:
        """Of them, those that a token meets on average: ModelShape.local_experts_per_token."""

    @property
    def expert_parallel(self) -> bool:
        """Other ranks hold other experts; rows are then always sorted, however few."""

    def awake(self, tokens: FloatArray) -> FloatArray:
        """Distinct experts of the rank that a step of so many tokens touches."""

    def blocks(self, tokens: FloatArray, block_rows: IntArray) -> FloatArray:
        """Blocks of so many rows that the rank's experts fill."""

    def rows_apart(self, tokens: FloatArray) -> FloatArray:
        """From a row of an expert to its next, on average, where rows go in the tokens' order."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts of one rank and how tokens reach them.

    Tokens are those that the rank's experts see: of all data-parallel replicas together.
    """

    num_experts: int
    """Experts of which the rank holds weights: ModelShape.local_experts."""
    experts_per_token: float
    """Of them, those that a token meets on average: ModelShape.local_experts_per_token."""
    shares: tuple[float, ...] | None = None
    """Share of the rank's rows that each expert gets; None: uniform. Adds up to 1."""
    expert_parallel: bool = False
    """Other ranks hold other experts; rows are then always sorted, however few."""

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise ExpertError(f"num_experts must be 1 or more, not {self.num_experts}")
        if not 0 < self.experts_per_token <= self.num_experts:
            raise ExpertError(
                f"experts_per_token must be above 0 and at most num_experts {self.num_experts}, "
                f"not {self.experts_per_token!r}"
            )
        if self.shares is not None:
            self._check_shares(self.shares)

    def chances(self) -> tuple[FloatArray, FloatArray]:
        """Chances that a token meets an expert, and how many experts have each.

        More than MAX_GROUPS experts of given shares are put into as many groups of neighbours.
        """
        if self.shares is None:
            chance = self.experts_per_token / self.num_experts
            return np.array([chance]), np.array([float(self.num_experts)])
        every = np.minimum(np.sort(self.shares) * self.experts_per_token, 1.0)
        groups = np.array_split(every, min(MAX_GROUPS, self.num_experts))
        counts = np.array([float(len(group)) for group in groups])
        return np.array([group.mean() for group in groups]), counts

    def awake(self, tokens: FloatArray) -> FloatArray:
        """Distinct experts of the rank that a step touches, U(T) in docs/theory.md."""
        chances, counts = self.chances()
        asleep = (1.0 - chances[:, None]) ** tokens[None, :]
        awake: FloatArray = counts @ (1.0 - asleep)
        return awake

    def blocks(self, tokens: FloatArray, block_rows: IntArray) -> FloatArray:
        """Blocks of ``block_rows`` rows that the rank's experts fill, on average.

        The sum over experts of E[ceil(m / b)], with m binomial: an expert meets each token or not.
        """
        chances, counts = self.chances()
        shape = (len(chances), len(tokens))
        chance = np.broadcast_to(chances[:, None], shape)
        rows = np.broadcast_to(block_rows, shape).astype(np.float64)
        blocks: FloatArray = counts @ _mean_blocks(np.broadcast_to(tokens, shape), chance, rows)
        return blocks

    def rows_apart(self, tokens: FloatArray) -> FloatArray:
        """Rows from one to the next of an expert: two of T tokens are (T + 1) / 3 tokens apart."""
        return self.experts_per_token * (tokens + 1) / 3

    def _check_shares(self, shares: Sequence[float]) -> None:
        if len(shares) != self.num_experts:
            raise ExpertError(
                f"shares must name all num_experts {self.num_experts}, not {len(shares)}"
            )
        wrong = [share for share in shares if not 0 <= share <= 1]
        if wrong or not math.isclose(sum(shares), 1.0, rel_tol=1e-6):
            raise ExpertError("shares must lie from 0 to 1 and add up to 1")
        if max(shares) * self.experts_per_token > 1 + 1e-6:
            raise ExpertError(
                f"shares give an expert {max(shares):.3g} of the rows, but it can meet a token "
                f"only once: at most {1 / self.experts_per_token:.3g}"
            )


@lru_cache(maxsize=256)
def skewed_shares(
    num_experts: int, experts_per_token: float, exponent: float
) -> tuple[float, ...] | None:
    """Share of each expert under a router that prefers some: proportional to rank ** -exponent.

    None for an exponent of 0, uniform routing. An expert meets a token at most once, which bounds
    its share; what is above goes to the others, in proportion.
    """
    if not exponent:
        return None
    shares = np.arange(1, num_experts + 1, dtype=np.float64) ** -exponent
    most = min(1.0, 1.0 / experts_per_token)
    for full in range(num_experts):
        rest = shares[full:].sum()
        scaled = shares[full:] * (1.0 - full * most) / rest
        if scaled[0] <= most * (1 + 1e-9):
            break
    kept = np.concatenate([np.full(full, most), np.minimum(scaled, most)])
    return tuple((kept / kept.sum()).tolist())


def closest_skew(error: Callable[[float], float]) -> float:
    """Exponent of the experts' shares by rank with the smallest error, of those that are tried."""
    tried = np.arange(0.0, MOST_SKEW + SKEW_STEP / 2, SKEW_STEP)
    return round(float(min(tried, key=lambda skew: error(float(skew)))), 2)


def _mean_blocks(tokens: FloatArray, chance: FloatArray, block: FloatArray) -> FloatArray:
    """E[ceil(m / b)] = P(m > 0) + P(m > b) + P(m > 2b) + ... for a binomial m.

    P(m > 0) is exact, the others by an Edgeworth series to the skewness; a deviation of half a
    block or more leaves the last block's rows as good as uniform.
    """
    mean = tokens * chance
    deviation = np.maximum(1e-3, np.sqrt(mean * (1.0 - chance)))
    uniform = mean / block + (block - 1) / (2 * block)
    full = np.floor(np.maximum(0.0, mean - _WINDOW_DEVIATIONS * deviation) / block)
    counted = 1.0 - (1.0 - chance) ** tokens + full
    for further in range(1, _WINDOW_BLOCKS):
        rows = (full + further) * block
        score = np.clip((rows + 0.5 - mean) / deviation, -8.0, 8.0)
        skewness = (1.0 - 2.0 * chance) / deviation
        correction = skewness * (score**2 - 1.0) * _normal_density(score) / 6.0
        counted = counted + np.clip(_normal_tail(score) + correction, 0.0, 1.0)
    return np.where(deviation >= block / 2, uniform, counted)


def _normal_density(score: FloatArray) -> FloatArray:
    density: FloatArray = np.exp(-(score**2) / 2.0) / math.sqrt(2.0 * math.pi)
    return density


def _normal_tail(score: FloatArray) -> FloatArray:
    """P(Z > score); Abramowitz and Stegun 26.2.17, to 7.5e-8."""
    t = 1.0 / (1.0 + 0.2316419 * np.abs(score))
    coefficients = (1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530, 0.0)
    upper = _normal_density(score) * np.polyval(coefficients, t)
    return np.where(score >= 0, upper, 1.0 - upper)
