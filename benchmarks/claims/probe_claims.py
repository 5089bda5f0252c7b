"""Claims of what a probe's runs simplify, against runs that do not."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims import recompute
from benchmarks.claims.claim import Claim, Quote, Run
from benchmarks.claims.depends import STATES

MODELS = "docs/models.md"
WRITE_MODEL = (
    'python -c "import sys, pathlib; from benchmarks.serving.shapes import write_model; '
    "write_model(pathlib.Path(sys.argv[1]), 'qwen3-next-80b-a3b', 12)\" {out}/model"
)
TIME_STATES = (
    "python -m benchmarks.answers.shared_states {out}/model --batch-sizes 1,8,32 --positions 1,8 "
    '--engine-args \'{{"load_format": "dummy", "skip_tokenizer_init": true, "max_model_len": 4096, '
    '"gpu_memory_utilization": 0.7, "additional_config": {{"gdn_prefill_backend": "triton"}}}}\' '
    "--out {out}/shared-states.json"
)


def claims() -> Iterator[Claim]:
    """Layers that share recurrent states."""
    yield Claim(
        "shared-states-h200",
        "12 layers of Qwen3-Next-80B-A3B, {layers} with recurrent states: a step in which they all "
        "work on one set takes {least} to {most} of the time of one in which each has its own, and "
        "one of these layers {layer_least} to {layer_most}",
        "one run, medians without a spread",
        "{shapes} shapes",
        recompute.shared_states,
        "benchmarks/results/2026-11-29-h200-states",
        Run((WRITE_MODEL, TIME_STATES)),
        "518fb65",
        "2026-11-29",
        "H200, vLLM 0.33.0",
        STATES,
        (
            *(_row(b, n) for b in (1, 8, 32) for n in (1, 8)),
            Quote(
                MODELS, "understated at most {understated} % of a step and {layer_understated} %"
            ),
            Quote(MODELS, "{shapes} shapes, {layers} layers with states"),
        ),
    )


def _row(batch_size: int, positions: int) -> Quote:
    """The row of one shape."""
    names = ("step_apart", "step_shared", "step_ratio", "layer_apart", "layer_shared")
    cells = (f"{{{name}_{batch_size}_{positions}}}" for name in (*names, "layer_ratio"))
    return Quote(MODELS, f"| {batch_size} | {positions} | {' | '.join(cells)} |")
