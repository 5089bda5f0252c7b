"""What the probe does in a configuration: it probes, only times real steps, or stays off."""

from __future__ import annotations

from typing import Any

from vllm_nfp.adapter import bindings, versions
from vllm_nfp.adapter.feature_list import features_of
from vllm_nfp.adapter.versions import Decision, Mode
from vllm_nfp.text import label


def decide(vllm_config: Any, passive: bool = False) -> Decision:
    """What the probe does with this vLLM and this configuration, alike on all ranks.

    Where a probe would corrupt something, or could not measure honestly, real steps are timed all
    the same: that injects nothing, touches no memory of the engine's and needs no other rank.

    Args:
        passive: the settings ask for the passive mode.
    """
    decision = versions.decide(versions.installed_version())
    if decision.mode is not Mode.ACTIVE:
        return decision
    if passive:
        return Decision(Mode.PASSIVE, "the setting passive is on: nothing is probed")
    try:
        return _decide_by_configuration(vllm_config)
    except AttributeError as error:  # an unknown setting may be a reason not to probe
        return Decision(Mode.PASSIVE, bindings.unlike_known(str(error)))


def _decide_by_configuration(vllm_config: Any) -> Decision:
    held = features_of(vllm_config)
    for mode in (Mode.OFF, Mode.PASSIVE):
        for feature in held:
            if feature.mode is mode:
                return Decision(mode, feature.reason(vllm_config))
    return Decision(Mode.ACTIVE)


def reports(parallel: Any) -> bool:
    """Whether this rank times the steps and reports them for its engine.

    It is the one whose output the scheduler reads: the first of the last pipeline stage, where
    tokens are sampled. Over several hosts it is the first of all, whose host serves /metrics; Ray's
    workers may be on several, and the first is on the engine's if it has a GPU there.
    """
    stages = parallel.pipeline_parallel_size
    stage = parallel.tensor_parallel_size * parallel.prefill_context_parallel_size
    one_host = parallel.nnodes == 1 and parallel.distributed_executor_backend != "ray"
    leader = (stages - 1) * stage if one_host else 0
    # Under an external launcher ranks are counted over the engines.
    return bool(parallel.rank % (stages * stage) == leader)


def served_name(vllm_config: Any) -> str:
    """The model's first served name, as the value of a label."""
    served = vllm_config.model_config.served_model_name
    return label(served[0] if isinstance(served, list) else str(served))


def refusal(vllm_config: Any) -> str | None:
    """Why this configuration cannot be probed; None if it can.

    Each reason names the feature and what to do without it.
    """
    return _decide_by_configuration(vllm_config).reason or None


def unpredicted(config: Any) -> str | None:
    """What of this configuration the predictor does not know; None if nothing.

    Whether the model's family is known is decided elsewhere, by its ``config.json``.
    """
    return next((f.unpredicted for f in features_of(config) if f.unpredicted), None)
