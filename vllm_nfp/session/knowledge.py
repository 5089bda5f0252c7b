"""What answers rest on before anything is measured: a prior, and maybe an earlier profile."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_nfp.adapter.environment import attention_backends
from vllm_nfp.adapter.predictions import served_ground
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.principle.live import Ground
from vllm_nfp.results.profile import ProfileError, load_profile, profile_file
from vllm_nfp.results.warm_start import OtherSetupError, check_same, observations_of
from vllm_nfp.session.output import Measured
from vllm_nfp.session.worker import Worker
from vllm_nfp.surface import (
    GENERIC,
    Hyperparameters,
    Observations,
    Prior,
    generic_prior,
    predicted_prior,
    recorded_for,
)
from vllm_nfp.types import ExpertRouting, Module

logger = logging.getLogger("vllm.nfp")


@dataclass(frozen=True, slots=True)
class Knowledge:
    """A prior, its uncertainty, and where they are from."""

    prior: Prior
    hyper: Hyperparameters
    kind: str
    """predicted, generic or profile."""
    reason: str = ""
    """Why the prior is generic, or why a file was refused; empty otherwise."""
    ground: Ground | None = None
    """Of the prediction; None where the prior is generic."""
    warm: Observations = Observations()  # noqa: RUF009  (it cannot be changed)
    """Of an earlier profile."""

    @property
    def guessed(self) -> bool:
        """Of the model or the device nothing was ever timed: the prior is a guess."""
        return self.ground is None or self.ground.target.calibration.assumed


def knowledge_of(
    worker: Worker,
    view: RunnerView,
    measured: Measured | None,
    graphs: CapturedGraphs,
    modules: Sequence[Module],
) -> Knowledge:
    """What is known of a worker's steps at the start; a line in the log says what that is.

    Args:
        measured: model and environment of this server; None: no earlier profile is looked for.
        graphs: the server's CUDA graphs.
        modules: timed beside the whole step.

    Raises:
        Exception: anything, if the predictor has a fault; in passive mode that is only logged.
    """
    predicted = _prior(worker, view, graphs, modules)
    known = predicted if measured is None else _warmed(worker, measured, predicted)
    because = f": {predicted.reason}" if predicted.reason else ""
    source = {
        "predicted": "the prediction for this model and GPU",
        "generic": "a generic guess with wide intervals",
        "profile": "an earlier profile",
    }[known.kind]
    logger.info("vllm-nfp: answers start from %s%s", source, because)
    return known


def _prior(
    worker: Worker,
    view: RunnerView,
    graphs: CapturedGraphs,
    modules: Sequence[Module],
) -> Knowledge:
    config, refused = worker.config, ""
    for hardware_file in dict.fromkeys((config.hardware_file, None)):
        try:
            backends = attention_backends(view.runner) if view.device.type == "cuda" else ()
            ground = served_ground(worker.vllm_config, view.device, backends, hardware_file)
            prior = predicted_prior(
                ground.shape, ground.target, ground.serving, config.max_positions
            )
            prior(1, 1)  # what cannot be predicted shows here
        except ValueError as error:
            refused = refused or str(error)
            if hardware_file is not None:
                logger.warning("vllm-nfp: %s", error)
        except Exception as error:
            if not config.passive:
                raise
            # An unknown vLLM may keep its configuration elsewhere; timing needs none of it.
            refused = refused or repr(error)
        else:
            return Knowledge(prior, recorded_for(ground.shape), "predicted", refused, ground)
    prior = generic_prior(graphs, config.max_positions, tuple(modules))
    return Knowledge(prior, GENERIC, "generic", refused)


def _routed(known: Knowledge, experts: ExpertRouting | None, most_positions: int) -> Knowledge:
    """With the routing that an earlier run counted, in the place of uniform routing."""
    if known.ground is None or experts is None:
        return known
    serving = replace(known.ground.serving, routing_skew=experts.skew)
    ground = replace(known.ground, serving=serving)
    prior = predicted_prior(ground.shape, ground.target, serving, most_positions)
    return replace(known, prior=prior, ground=ground)


def _warmed(worker: Worker, measured: Measured, known: Knowledge) -> Knowledge:
    """With an earlier profile, if there is one of the same model and device."""
    config = worker.config
    path = config.start_profile
    if path is None:
        if config.output_dir is None:
            return known
        found = profile_file(config.output_dir, worker.identity.engine)
        if not found.exists():
            return known
        path = str(found)
    try:
        profile = load_profile(path)
        check_same(profile, measured.environment, measured.model)
    except (ProfileError, OtherSetupError) as error:
        sentence = f"the start profile {path} is not used: {error}"
        log = logger.info if config.start_profile is None else logger.warning
        log("vllm-nfp: %s", sentence)
        return replace(known, reason="; ".join(filter(None, (known.reason, sentence))))
    known = _routed(known, profile.experts, config.max_positions)
    modules = known.prior(1, 1).modules
    warm = observations_of(profile, modules, config.max_positions, time.time())
    logger.info("vllm-nfp: %d ratios of %s are taken over", len(warm.ratios), Path(path).name)
    if not warm.ratios:
        return known
    return replace(known, kind="profile", warm=warm)
