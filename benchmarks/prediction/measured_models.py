"""NFP of the models that were run on GPUs, from their records, as the table of ``docs/models.md``.

python -m benchmarks.prediction.measured_models
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
EPSILON = 0.1
BATCH_SIZES = (1, 8, 32)
SHORT, LONG = 1024, 4096
"""Contexts."""
MODULES = ("attention", "linear_attention", "dense_ffn", "moe_ffn")
MARKS = {"measured": "", "inferred": "~", "predicted": "?"}
"""As ``vllm-nfp table`` has them, by what an answer rests on."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A recorded profile or snapshot of one model.

    Attributes:
        path: of the file, below :data:`RESULTS`.
        how: it was measured, with the commit.
    """

    model: str
    path: str
    how: str


RECORDS = (
    Measured(
        "Qwen3-8B in FP8", "2026-11-28-h200-fp8-images/fp8/truth.json.gz",
        "every point timed, 4851083",
    ),
    Measured(
        "Qwen2.5-VL-7B", "2026-11-28-h200-fp8-images/images/table.json",
        "at the defaults, while pictures were read, 4851083",
    ),
    Measured(
        "Qwen3-Next-80B-A3B, 12 of 48 layers",
        "2026-11-28-h200-fp8-images/qwen3-next/profile.json.gz", "`measure`, 3daa5c9",
    ),
    Measured(
        "Qwen3-30B-A3B", "2026-11-29-h200/experts/truth.json.gz", "every point timed, a1cafc6"
    ),
    Measured(
        "Qwen3-30B-A3B, 8 of 48 layers, data and expert parallel on 2 GPUs",
        "2026-11-28-h200x2-alike/data-parallel/dp-ep-table.json.gz",
        "half of the time for probes, bb127de",
    ),
    Measured(
        "DeepSeek-V2-Lite",
        "2026-11-29-h200x2-overhead/latent-attention/truth.json.gz",
        "every point timed, 934ada2",
    ),
    Measured(
        "gpt-oss-20b in MXFP4", "2026-11-29-h200x2-overhead/gpt-oss/truth.json.gz",
        "every point timed, 934ada2",
    ),
)  # fmt: skip


def section() -> str:
    """The table, and a row for each record below it."""
    head = (
        "| model | B | step, L = 1024 | ms | step, L = 4096 | ms | attention, L = 4096 | linear "
        "attention | dense FFN | MoE FFN |\n" + "| --- " * 10 + "|\n"
    )
    runs = "\n| model | GPU, vLLM | date | how, commit |\n| --- | --- | --- | --- |\n"
    found = [(record, _read(record)) for record in RECORDS]
    rows = "".join(row for record, state in found for row in _rows(record.model, state))
    return head + rows + runs + "".join(_run(record, state) for record, state in found)


def _read(record: Measured) -> Mapping[str, Any]:
    content = (RESULTS / record.path).read_bytes()
    if record.path.endswith(".gz"):
        content = gzip.decompress(content)
    state: Mapping[str, Any] = json.loads(content)
    return state


def _rows(model: str, state: Mapping[str, Any]) -> Iterator[str]:
    answers = state.get("snapshot", state)
    for batch_size in BATCH_SIZES:
        cells = [model, str(batch_size)]
        for context in (SHORT, LONG):
            cells.append(_boundary(answers["boundaries"], "model", batch_size, context))
            cells.append(_milliseconds(answers["curves"], batch_size, context))
        for module in MODULES:
            context = LONG if module == "attention" else SHORT
            cells.append(_boundary(answers["boundaries"], module, batch_size, context))
        yield f"| {' | '.join(cells)} |\n"


def _boundary(
    boundaries: Sequence[Mapping[str, Any]], module: str, batch_size: int, context: int
) -> str:
    """NFP with its interval and basis; ``-`` where the model has no such module, or no answer."""
    for one in boundaries:
        place = one["module"], one["batch_size"], one["context"], one["epsilon"]
        if place == (module, batch_size, context, EPSILON):
            more = "+" if one["at_limit"] else ""
            interval = f"[{one['lower']}, {one['upper']}]"
            return f"{MARKS[one['basis']]}{one['positions']}{more} {interval}"
    return "-"


def _milliseconds(curves: Sequence[Mapping[str, Any]], batch_size: int, context: int) -> str:
    for one in curves:
        place = one["module"], one["batch_size"], one["context"], one["positions"]
        if place == ("model", batch_size, context, 1) and one["median_seconds"]:
            return f"{1e3 * one['median_seconds']:.2f}"
    return "-"


def _run(record: Measured, state: Mapping[str, Any]) -> str:
    about = state["environment"]
    device = about.get("device") or about["gpu"]
    one = device[0] if isinstance(device, list) else device
    date = about["date"][:10] if "date" in about else _day(about["date_unix_seconds"])
    folder = f"../benchmarks/results/{record.path.rsplit('/', 1)[0]}"
    gpu = one["name"].removeprefix("NVIDIA ")
    return f"| [{record.model}]({folder}) | {gpu}, {about['vllm']} | {date} | {record.how} |\n"


def _day(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).date().isoformat()


if __name__ == "__main__":
    print(section())
