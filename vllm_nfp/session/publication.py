"""Makes the publisher, and publishes for the first time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from vllm_nfp.adapter import support
from vllm_nfp.adapter.environment import attention_backends, describe_environment, describe_model
from vllm_nfp.adapter.predictions import predict_rows
from vllm_nfp.adapter.ranks import Ranks
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.draft.curve_exchange import CurveSender
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.session.output import Measured, Output
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.session.worker import Worker
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import CellKey, Prediction

logger = logging.getLogger("vllm.nfp")

EVERY_RANK_READY = "does every rank publish or follow"
"""What the ranks are asked at the end of the start."""


def open_publisher(
    worker: Worker, view: RunnerView, identity: Snapshot, times: StepTimes, output: Output
) -> Publisher:
    """The publisher, not started yet, and the log of raw samples, if it is wanted.

    Args:
        identity: the fixed part of each snapshot, as far as it is known.
        times: of real steps.
    """
    if output.keeps:
        vllm_config = worker.vllm_config
        environment = describe_environment(vllm_config, attention_backends(view.runner))
        model = describe_model(identity.model_name, vllm_config)
        output.open(identity.engine, Measured(environment, model, worker.config))
    draft_control = worker.config.draft_control
    sender = CurveSender(worker.config, identity.engine) if draft_control else None
    return Publisher(worker.config, identity, times, output, sender)


def publish_first(
    worker: Worker,
    view: RunnerView,
    publisher: Publisher,
    identity: Snapshot,
    cells: Sequence[CellKey],
    ranks: Ranks,
) -> Snapshot:
    """Predict, publish once, and let the publisher go on in the background.

    Returns the fixed part of each snapshot, with all that the start has waited for.
    """
    identity = replace(identity, predictions=predictions_of(worker, view, cells))
    publisher.publish(worker.with_cost(identity))
    ranks.all(True, EVERY_RANK_READY)
    identity = worker.with_cost(identity)
    publisher.start(identity)
    return identity


def predictions_of(
    worker: Worker, view: RunnerView, cells: Sequence[CellKey]
) -> tuple[Prediction, ...]:
    """What the predictor says of the cells; nothing, with a line in the log, if it knows nothing.

    Raises:
        Exception: anything, if the predictor has a fault; in passive mode that is only logged.
    """
    try:
        unknown = support.unpredicted(worker.vllm_config)
        if unknown is not None:
            logger.info("vllm-nfp: no prediction: the predictor does not know %s", unknown)
            return ()
        backends = attention_backends(view.runner)
        epsilons = worker.config.epsilons
        return predict_rows(worker.vllm_config, view.device, backends, cells, epsilons)
    except Exception as error:
        if not worker.config.passive:
            raise
        # An unknown vLLM may keep its configuration elsewhere; timing needs none of it.
        logger.info("vllm-nfp: no prediction: %r", error)
        return ()
