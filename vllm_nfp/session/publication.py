"""Makes the publisher, and publishes for the first time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from vllm_nfp.adapter.environment import attention_backends, describe_environment, describe_model
from vllm_nfp.adapter.predictions import predict_rows
from vllm_nfp.adapter.ranks import Ranks
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.draft.curve_exchange import CurveSender
from vllm_nfp.principle import PredictionError
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.principle.live import Ground
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.table import Table
from vllm_nfp.session.knowledge import knowledge_of
from vllm_nfp.session.output import Measured, Output
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.session.worker import Worker
from vllm_nfp.surface import CostSurface
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import Module, Prediction

logger = logging.getLogger("vllm.nfp")

EVERY_RANK_READY = "does every rank publish or follow"
"""What the ranks are asked at the end of the start."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A publisher that has not started, and what it will say of itself."""

    publisher: Publisher
    identity: Snapshot
    """The fixed part of each snapshot, as far as it is known."""
    ground: Ground | None
    """Of predictions; None: there are none."""

    def first(self, worker: Worker, table: Table, ranks: Ranks) -> Snapshot:
        """Predict, publish once, and let the publisher go on in the background.

        Returns the fixed part of each snapshot, with all that the start has waited for.
        """
        identity = replace(
            self.identity, predictions=predictions_of(self.ground, table, worker.config.epsilons)
        )
        if self.ground is not None:
            self.publisher.experts.predict_with(
                partial(_predictions_at, self.ground, table, worker.config.epsilons),
                self.ground.serving.routing_skew,
            )
        self.publisher.publish(worker.with_cost(identity))
        ranks.all(True, EVERY_RANK_READY)
        identity = worker.with_cost(identity)
        self.publisher.start(identity)
        return identity


def open_publication(
    worker: Worker,
    view: RunnerView,
    identity: Snapshot,
    times: StepTimes,
    table: Table,
    modules: Sequence[Module],
    graphs: CapturedGraphs,
    output: Output,
) -> Publication:
    """What publishes, not started yet, and the log of raw samples, if it is wanted.

    Args:
        identity: the fixed part of each snapshot, as far as it is known.
        times: of real steps.
        modules: timed beside the whole step.
        graphs: the server's CUDA graphs.
    """
    config = worker.config
    measured = None
    if output.keeps or config.start_profile is not None:
        environment = describe_environment(worker.vllm_config, attention_backends(view.runner))
        model = describe_model(identity.model_name, worker.vllm_config)
        measured = Measured(environment, model, config)
        output.open(identity.engine, measured)
    known = knowledge_of(worker, view, measured, graphs, modules)
    server = describe_environment(worker.vllm_config).server
    identity = replace(identity, server=server, prior=known.kind, prior_reason=known.reason)
    shapes = {"shapes_kept": len(table.shapes)} if config.wanted_samples else {}
    surface = CostSurface(
        known.prior, known.hyper, known.warm, config.max_samples, config.min_samples, **shapes
    )
    results = Results(config, surface, table, known.guessed)
    sender = CurveSender(config, identity.engine) if config.draft_control else None
    publisher = Publisher(config, identity, times, results, output, sender)
    return Publication(publisher, identity, known.ground)


def _predictions_at(
    ground: Ground, table: Table, epsilons: Sequence[float], skew: float
) -> tuple[Prediction, ...]:
    """With experts whose shares fall with rank to the minus ``skew``."""
    serving = replace(ground.serving, routing_skew=skew)
    return predictions_of(replace(ground, serving=serving), table, epsilons)


def predictions_of(
    ground: Ground | None, table: Table, epsilons: Sequence[float]
) -> tuple[Prediction, ...]:
    """What the predictor says of the reported cells; nothing where it knows nothing."""
    if ground is None:
        return ()
    try:
        return predict_rows(ground, list(table.cells), epsilons)
    except PredictionError as error:
        logger.info("vllm-nfp: no prediction: %s", error)
        return ()
