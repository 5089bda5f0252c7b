"""The step times that ``recommend`` is asked for: measured or predicted."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nfp.cli.common import Refusal, parse_list, read_profile
from vllm_nfp.cli.options import given_flag
from vllm_nfp.draft import sources
from vllm_nfp.draft.demand import LARGEST_DRAFT_LENGTH
from vllm_nfp.draft.inputs import is_url
from vllm_nfp.draft.sources import PREDICTED_BATCH_SIZES, from_profile
from vllm_nfp.principle.arguments import MOST_SEQUENCES

if TYPE_CHECKING:
    from vllm_nfp.draft.inputs import StepTimes
    from vllm_nfp.principle.predictions import Predictions

PREDICTED_BATCH_SIZE = PREDICTED_BATCH_SIZES[-1]
PREDICTED_POSITIONS = 64
PREDICTED_CONTEXTS = ",".join(map(str, sources.PREDICTED_CONTEXTS))
_ADDRESS = re.compile(r"[\w.+-]+:(//|\d+)")
"""Text that looks like a server's address, but lacks http://."""


def check_measured(source: str, served: Mapping[str, Any]) -> None:
    """Check a source of measured step times.

    Raises:
        Refusal: if it is neither a file nor a URL, or options of a prediction are given too.
    """
    given = given_flag(("hardware", "batch_sizes", *served))
    if given is not None:
        raise Refusal(f"{given} needs --predicted: the step times of {source} were measured")
    looks_like_server = _ADDRESS.match(source) and not os.path.exists(source)
    if not is_url(source) and (not source or looks_like_server):
        raise Refusal(
            f"{source!r:.80} is neither a file nor a URL: give a profile.json, or a server such as "
            f"http://localhost:8000"
        )


def measured_times(source: str) -> StepTimes:
    """The step times of a profile, or the server's URL.

    Raises:
        Refusal: for a file that is no profile.
    """
    return source if is_url(source) else from_profile(read_profile(Path(source)), source)


def predicted_times(
    model: str | None,
    hardware: str | None,
    batch_sizes: str | None,
    contexts: str | None,
    served: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Predictions:
    """Predicted step times, as far as the table and its longest draft need them.

    Args:
        served: how the server runs the model, as ``predict`` takes it.
        settings: of the recommendation.

    Raises:
        Refusal: for what cannot be predicted.
    """
    from vllm_nfp.principle import HardwareError, PredictionError, ShapeError
    from vllm_nfp.principle.prediction import predict

    if model is None or hardware is None:
        raise Refusal("--predicted needs --hardware NAME, for example --hardware H100-SXM")
    longest = max((settings["max_draft_length"] or 0, *(settings["draft_lengths"] or ())))
    # A length beyond all bounds is refused later, by its own name.
    positions = max(PREDICTED_POSITIONS, min(longest, LARGEST_DRAFT_LENGTH) + 1)
    try:
        return predict(
            model,
            hardware,
            _powers_of_two(settings["max_batch_size"])
            if batch_sizes is None
            else _ascending(batch_sizes, "--batch-sizes"),
            _ascending(PREDICTED_CONTEXTS if contexts is None else contexts, "--contexts"),
            max_positions=positions,
            **served,
        )
    except (HardwareError, PredictionError, ShapeError) as error:
        raise Refusal(str(error)) from None


def _powers_of_two(last: int | None) -> tuple[int, ...]:
    """1, 2, 4, ... and the last batch size of the table."""
    last = PREDICTED_BATCH_SIZE if last is None else last
    if last > MOST_SEQUENCES:
        raise Refusal(
            f"--max-batch-size must be between 1 and {MOST_SEQUENCES} with --predicted, not "
            f"{last}, unless --batch-sizes is given"
        )
    last = max(1, last)  # one below 1 is refused later
    return tuple(sorted({2**i for i in range(last.bit_length())} | {last}))


def _ascending(text: str, name: str) -> tuple[int, ...]:
    return tuple(sorted(set(parse_list(text, int, name))))
