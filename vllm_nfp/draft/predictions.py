"""Step times and drafting costs that are predicted, with the host's time beside the GPU's.

A predicted step is GPU time. What an engine does is longer where the host takes part in it; see
:mod:`vllm_nfp.principle.host_time`. The curves here are those of an engine without a drafter, and a
draft costs what an engine that speculates takes more.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import numpy as np

from vllm_nfp.draft.curve import StepCurve, curve_of_seconds
from vllm_nfp.draft.demand import LARGEST_DRAFT_LENGTH, DraftCost
from vllm_nfp.draft.drafting import Drafting
from vllm_nfp.draft.methods import LOOKUPS
from vllm_nfp.draft.sources import Source, SourceError
from vllm_nfp.principle.drafter import Drafter, DrafterError, drafter_of, drafting
from vllm_nfp.principle.drafter import Drafting as PredictedSeconds
from vllm_nfp.principle.drafter.mtp import mtp_layers
from vllm_nfp.principle.model_sources import read_model
from vllm_nfp.principle.notes import notes, origin
from vllm_nfp.principle.predictions import Predictions
from vllm_nfp.principle.shape import ShapeError
from vllm_nfp.types import Basis, Module

NOTHING = PredictedSeconds((0.0,) * (LARGEST_DRAFT_LENGTH + 1), (0,) * (LARGEST_DRAFT_LENGTH + 1))
"""Of a lookup: no time of the GPU."""


def from_predictions(found: Predictions) -> Source:
    """The predicted step times of the batch sizes and contexts that were asked for.

    Cells that exceed the memory of the device are left out, unless all do.
    """
    cells = [(size, context) for context in found.contexts for size in found.batch_sizes]
    unfit = {(cell.batch_size, cell.context) for cell in found.too_large}
    fit = [cell for cell in cells if cell not in unfit]
    curves = [_curve(found, *cell) for cell in fit or cells]
    return Source(
        "prediction",
        "the prediction",
        found.model,
        tuple(curves),
        found.hardware,
        whole=bool(fit),
        drafting=PredictedDrafting(found=found),
        notes=(*notes(found), *_host_notes(found)),
        origins=(origin(found),) if found.target.calibration.fitted else (),
    )


def _curve(found: Predictions, batch_size: int, context: int) -> StepCurve:
    cell = found.cell(Module.MODEL, batch_size, context)
    seconds = found.host_time.engine_seconds(np.array(cell.seconds))
    times = dict(zip(cell.positions, seconds.tolist(), strict=True))
    beyond = [n for n in cell.positions if 0 < cell.in_graphs < n]
    return replace(
        curve_of_seconds(batch_size, context, times),
        boundaries=tuple(sorted((b.epsilon, b.nfp, b.at_limit) for b in cell.boundaries)),
        bases=(Basis.PREDICTED,) * len(times),
        without_graph_from=min(beyond, default=None),
    )


def _host_notes(found: Predictions) -> tuple[str, ...]:
    host = found.host_time
    exposed = (
        f" and {host.exposed_seconds * 1e3:.3g} ms of every step that the GPU waits for"
        if host.exposed_seconds
        else ""
    )
    return (
        f"The host's time is assumed: a step takes at least {host.step_seconds * 1e3:.3g} ms, with "
        f"speculation {host.draft_step_seconds * 1e3:.3g} ms{exposed}; from {host.source}.",
    )


@dataclass(frozen=True, slots=True)
class PredictedDrafting(Drafting):
    """What drafts of any method cost on a server that is predicted."""

    found: Predictions = field(kw_only=True)
    draft_model: str | None = None
    """Directory of the head's or draft model's config.json; None: a head of the usual shape."""

    def cost(self, method: str) -> DraftCost | None:
        """As a server of the same method has measured it, else predicted for each batch size.

        Raises:
            SourceError: if the model has no such drafter, or its config cannot be read.
        """
        found, host = self.found, self.found.host_time
        measured = None if method in LOOKUPS else Drafting.cost(self, method)
        if measured is not None and measured.seconds_per_token:
            return measured  # a 0 that the host hides says nothing of another server
        if method in LOOKUPS:
            note = (
                f"{method} lookup costs no GPU time; a step of an engine that speculates takes at "
                f"least {host.draft_step_seconds * 1e3:.3g} ms of the host"
            )
            return DraftCost(steps=PredictedSteps(found, None), note=note)
        drafter = self._drafter(method)
        steps = PredictedSteps(found, drafter)
        batch_size, context = found.batch_sizes[0], found.contexts[0]
        gpu = steps.gpu(batch_size, context)
        each = gpu.seconds[1] if drafter.runs == "parallel" else gpu.seconds[2] - gpu.seconds[1]
        what = "each step's drafts take" if drafter.runs == "parallel" else "a drafted token takes"
        note = " ".join((
            f"{what} {each * 1e3:.3g} ms of GPU time with {method} at batch size {batch_size} and "
            f"context {context}, and {host.draft_call_seconds * 1e3:.3g} ms of the host for each "
            f"run: predicted.",
            *drafter.assumptions,
        )).removesuffix(".")  # fmt: skip
        return DraftCost(steps=steps, note=note)

    def _drafter(self, method: str) -> Drafter:
        found = self.found
        try:
            head = None if self.draft_model is None else read_model(self.draft_model)[0]
        except ShapeError as error:
            if method == "draft_model":
                raise SourceError(f"the draft model's config is needed: {error}") from None
            head = None  # a name, for --speculative-config: the usual shape is assumed
        try:
            return drafter_of(method, found.config, found.shape, head)
        except DrafterError as error:
            raise SourceError(str(error)) from None


def hints(source: Source, method: str | None) -> tuple[str, ...]:
    """That a predicted checkpoint holds prediction layers, for who names no method."""
    assert isinstance(source.drafting, PredictedDrafting)
    if method is not None or not mtp_layers(source.drafting.found.config):
        return ()
    return ("the checkpoint holds prediction layers: --draft-method mtp predicts their drafts",)


def predicted_drafting(source: Source, counted: Drafting, draft_model: str | None) -> Drafting:
    """The drafting of a predicted source, with what the server of the acceptance has measured."""
    assert isinstance(source.drafting, PredictedDrafting)
    return replace(
        source.drafting,
        methods=counted.methods,
        token_seconds=counted.token_seconds,
        token_seconds_by_batch=counted.token_seconds_by_batch,
        draft_model=draft_model,
    )


class PredictedSteps:
    """Seconds by which a step with K drafts takes longer than its verification alone."""

    def __init__(self, found: Predictions, drafter: Drafter | None) -> None:
        self._found = found
        self._drafter = drafter
        self._longest = min(found.max_positions - 1, LARGEST_DRAFT_LENGTH)
        self._at = functools.cache(self._compute)

    def __call__(self, batch_size: int, context: int, draft_length: int) -> float:
        """t_draft(K) at any batch size and context, in seconds."""
        return self._at(batch_size, context)[min(draft_length, self._longest)]

    def gpu(self, batch_size: int, context: int) -> PredictedSeconds:
        """The part of it that is the drafter's on the GPU."""
        if self._drafter is None:
            return NOTHING
        found, longest = self._found, max(2, self._longest)
        return drafting(self._drafter, found.target, found.serving, batch_size, context, longest)

    def _compute(self, batch_size: int, context: int) -> tuple[float, ...]:
        found, host = self._found, self._found.host_time
        lengths = range(self._longest + 1)
        verified = np.array(found.cell(Module.MODEL, batch_size, context).seconds)[: len(lengths)]
        gpu = self.gpu(batch_size, context)
        whole = host.engine_seconds(
            verified,
            np.array(gpu.calls[: len(lengths)]),
            np.array(gpu.seconds[: len(lengths)]),
            speculates=True,
        )
        return tuple((whole - host.engine_seconds(verified)).tolist())
