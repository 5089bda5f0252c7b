"""Whether a server that verifies adaptively drafts more than pays, by a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm_nfp.doctor.facts import Facts
from vllm_nfp.doctor.findings import Finding, Status
from vllm_nfp.doctor.machine import hardware_at_hand
from vllm_nfp.draft.acceptance import from_rates
from vllm_nfp.draft.adaptive import AdaptiveDrafts
from vllm_nfp.draft.methods import known_method
from vllm_nfp.draft.sources import PREDICTED_BATCH_SIZES, PREDICTED_CONTEXTS, SourceError
from vllm_nfp.draft.typical import TYPICAL, Typical


def drafts(facts: Facts) -> Iterator[Finding]:
    """That fewer drafts reach more at every published acceptance of the method.

    Nothing is said where that cannot be predicted: without a known GPU, without a published
    acceptance, for a model or a drafter that the predictor does not know.
    """
    values, model = facts.answer.values, facts.question.model
    if model is None or not values or values["speculative"] is None:
        return
    if not values["adaptive_verification"]:
        return
    length, hardware = values["draft_length"], hardware_at_hand()
    method = known_method(values["speculative"])
    published = [of for of in TYPICAL if of.method == method]
    if hardware is None or not published:
        return
    found = _predicted(model, hardware, values, published)
    if not found or any(of.keeps or of.draft_length >= length for of in found):
        return
    best = max(found, key=lambda of: of.draft_length)
    assert best.running_reached is not None
    yield Finding(
        "drafts of adaptive verification",
        Status.WARNING,
        f"each step drafts all {length} tokens, whatever is verified",
        f"with num_speculative_tokens {best.draft_length} it reaches {_percent(best.reached.mean)} "
        f"of the best fixed draft length, with {length} {_percent(best.running_reached.mean)}: "
        f"predicted for {hardware} at the highest published acceptance of {method}; vllm-nfp "
        f"recommend URL says it for yours",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _predicted(
    model: Path, hardware: str, values: Mapping[str, Any], published: list[Typical]
) -> list[AdaptiveDrafts]:
    """At each published acceptance, or nothing."""
    # Predictions need numpy, which the other checks do without.
    from vllm_nfp.draft.recommend import RecommendError, recommend
    from vllm_nfp.principle import HardwareError, PredictionError, ShapeError
    from vllm_nfp.principle.prediction import predict

    length, graphs, last = values["draft_length"], values["graphs"], values["max_model_len"]
    try:
        times = predict(
            model,
            hardware,
            [size for size in PREDICTED_BATCH_SIZES if size <= values["max_num_seqs"]],
            [at for at in PREDICTED_CONTEXTS if at < last] or [last],
            tensor_parallel_size=values["tensor_parallel"],
            data_parallel_size=values["data_parallel"],
            expert_parallel=values["expert_parallel"],
            quantization=_quantization(model, values["quantization"]),
            kv_cache_dtype=values["kv_cache_dtype"],
            capture_sizes=() if graphs["eager"] else graphs["sizes"],
            max_positions=length + 1,
        )
        found = [
            recommend(
                times,
                from_rates(of.rates).extended(),
                draft_method=values["speculative"],
                running=length,
                adaptive_verification=True,
            ).adaptive
            for of in published
        ]
    except (HardwareError, PredictionError, ShapeError, SourceError, RecommendError):
        return []
    return [of for of in found if of is not None and of.running_reached is not None]


def _quantization(model: Path, given: str | None) -> str | None:
    """What the flags say and the config.json does not."""
    from vllm_nfp.principle.model_sources import read_model
    from vllm_nfp.principle.reading.wrapper import text_config
    from vllm_nfp.principle.weights.stored import quantization_of

    config, _ = read_model(model)
    return given if quantization_of(config, text_config(config)) is None else None
