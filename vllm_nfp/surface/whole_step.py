"""The whole step's time from its parts: positions share a context, and launches may bound it.

Experts. A layer that is timed alone activates the experts of B x N tokens. In a whole step the
positions of one sequence share its context. Their hidden states grow alike with depth, so that they
activate fewer distinct experts than as many sequences do. The time of experts is put between two
ends here: s = 1 for independent positions, and s = 0 where all positions of a sequence choose the
same experts (:mod:`vllm_nfp.principle.alike`). A probe shows this only if each of its sequences
reads the context of a real one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_nfp.surface.parts import WORK, FloatArray, Part

LAUNCH_DEVIATION = 0.4
"""Standard deviation of log launch time before a step without a CUDA graph was measured. Recorded
hosts scatter by 0.2, but all of them had the same kind of processor: a choice, not a fit."""
LEAST_LAUNCH_DEVIATION = 0.15
INDEPENDENCE = 0.6
"""Expected s, from the experts of served models with trained weights: next tokens share 38 % of
theirs, and four tokens read 2.5 times those of one, 31 % less than independent ones (Cohere, "Why
MoE models get more from speculative decoding", 2026-04-21). That is s = 0.66 and 0.57. In a deep
model with dummy weights it was some 0.2 (:data:`vllm_nfp.surface.kernel.CONTEXT`)."""


@dataclass(frozen=True, slots=True)
class Bend:
    """What the whole step depends on in no straight line; the surface learns it by and by."""

    launch_deviation: float = LAUNCH_DEVIATION
    """Standard deviation of log launch time."""
    independence: float = INDEPENDENCE
    """s."""


EXPECTED = Bend()
"""Before any measurement."""


@dataclass(frozen=True, slots=True)
class WholeStep:
    """The whole step at N = 1, 2, ...

    Attributes:
        log_seconds: shape [n].
        shares: d log of the step / d log of each part, shape [parts, n].
    """

    log_seconds: FloatArray
    shares: FloatArray


def whole_step(
    seconds: FloatArray, alike: FloatArray | None = None, bend: Bend = EXPECTED
) -> WholeStep:
    """Of real steps, and of probes that read KV blocks with content.

    Args:
        seconds: of each part, shape [parts, n].
        alike: the experts' time where the positions of a sequence choose the same ones, as a ratio
            to that of independent positions; shape [n], 1 at N = 1. None: there are no experts.
    """
    if alike is None:
        return _bounded(seconds, bend.launch_deviation)
    share = alike + bend.independence * (1.0 - alike)
    shared = seconds.copy()
    shared[Part.MOE_FFN] *= share
    found = _bounded(shared, bend.launch_deviation)
    found.shares[Part.CONTEXT] = found.shares[Part.MOE_FFN] * (1.0 - alike) / share
    return found


def without_content(seconds: FloatArray, bend: Bend = EXPECTED) -> WholeStep:
    """Of probes that read KV blocks without content: see :func:`whole_step`."""
    found = _bounded(seconds, bend.launch_deviation)
    found.shares[Part.ROUTING] = found.shares[Part.MOE_FFN]
    return found


def both_steps(
    seconds: FloatArray, alike: FloatArray | None, bend: Bend = EXPECTED
) -> tuple[WholeStep, WholeStep]:
    """:func:`whole_step` and :func:`without_content`, which are one where there are no experts."""
    step = whole_step(seconds, alike, bend)
    return step, step if alike is None else without_content(seconds, bend)


def _bounded(seconds: FloatArray, deviation: float) -> WholeStep:
    """Work and launches.

    A power mean of work and launches stands for the expectation of their maximum, where log launch
    time has this standard deviation: with the exponent 1.702 / deviation its derivative is the
    logistic approximation of the probability that launches bound the step.
    """
    power = 1.702 / max(deviation, LEAST_LAUNCH_DEVIATION)
    total = seconds[list(WORK)].sum(axis=0)
    # Relative to the work, since powers of seconds may underflow.
    work, launch = np.ones_like(total), (seconds[Part.LAUNCH] / total) ** power
    bound_by_work = work / (work + launch)
    shares = np.zeros_like(seconds)
    shares[list(WORK)] = seconds[list(WORK)] / total * bound_by_work
    shares[Part.LAUNCH] = 1.0 - bound_by_work
    shares[Part.STEP] = 1.0
    return WholeStep(np.log(total) + np.log(work + launch) / power, shares)
