"""Claim: what a server says of its steps prices them as well as the truth does. Needs no GPU.

    python -m benchmarks.verification.answers RECORD.json.gz --metrics METRICS.prom.gz \\
        --traces TRACES.npz --shape qwen3-8b --layers 36 --hardware H200

Replays the streams of a recorded comparison through vLLM's choice, as
:mod:`benchmarks.verification.offline` does, with the steps of the fixed lengths as the truth.
Prices are those of the answers that the server with measured costs gave at its end, and those of
the prediction alone, without any pair. Answers whose 95 % intervals are too wide to be used are
left out. Of each load the table has what a choice reaches of what it reaches with the true costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import click

from benchmarks.answers.steps_again import curves_at
from benchmarks.serving import shapes
from benchmarks.verification.offline import DRAFT_MS, FloatArray, Offline, offline_of
from benchmarks.verification.plan import LONG, SHORT
from benchmarks.verification.table import Load, read_record
from vllm_nfp.draft.cost_rows import is_narrow
from vllm_nfp.draft.cost_tables import verify_ms
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.predictions import from_predictions
from vllm_nfp.draft.verify_costs import CostRow
from vllm_nfp.principle.prediction import predict

CONTEXTS = {"1k": SHORT, "8k": LONG, "mixed": (SHORT + LONG) // 2}
"""Mean over a load's sequences."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
GRAPHS = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
"""Tokens that vLLM captures on H100 and H200 by default."""


class Prices:
    """What steps cost by curves of whole steps.

    Args:
        curves: at several batch sizes and contexts.
        drafts: of each step.
    """

    def __init__(self, curves: Iterable[StepCurve], drafts: int) -> None:
        self._curves, self._drafts = tuple(curves), drafts

    def of(self, load: Load) -> FloatArray | None:
        """Milliseconds by drafts that a step verifies; None where little is known."""
        name, requests = load
        near = max(c.context for c in self._curves if c.context <= CONTEXTS[name])
        here = sorted(
            (c for c in self._curves if c.context == near and _is_used(c, self._drafts)),
            key=lambda curve: curve.batch_size,
        )
        counts = range(1, self._drafts + 2)
        known = [
            CostRow(c.batch_size, tuple(c.seconds_at_one * c.ratio(n) for n in counts))
            for c in here
        ]
        table = verify_ms(known, requests, GRAPHS)
        return None if table is None else table + DRAFT_MS * self._drafts


def _is_used(curve: StepCurve, drafts: int) -> bool:
    """Whether each ratio that a step may read in a graph is known well enough."""
    held = min(1 + drafts, GRAPHS[-1] // curve.batch_size)
    within = zip(curve.points, curve.intervals, strict=False)
    read = [ends for (n, _), ends in within if 1 < n <= held]
    return curve.largest > drafts and all(is_narrow(*ends) for ends in read)


def predicted(shape: str, layers: int, hardware: str) -> tuple[StepCurve, ...]:
    """Curves of a shape without any pair."""
    model = shapes.shared_model(shape, layers)
    found = predict(
        str(model), hardware=hardware, batch_sizes=SIZES, contexts=(SHORT, 4 * SHORT, LONG)
    )
    return from_predictions(found).curves


def table(offline: Offline, ways: dict[str, Prices]) -> str:
    """A row for each load and one of their means, in Markdown."""
    lines = [f"| context, requests | {' | '.join(ways)} |", "| --- " * (1 + len(ways)) + "|"]
    columns = [offline.chosen_by(prices.of) for prices in ways.values()]
    for load in columns[0]:
        cells = (column[load] for column in columns)
        lines.append(f"| {load[0]}, {load[1]} | {' | '.join(map(_text, cells))} |")
    means = (fmean(s for s in column.values() if s is not None) for column in columns)
    return "\n".join([*lines, f"| mean | {' | '.join(map(_text, means))} |"])


def _text(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"


def of_record(
    record: Path, metrics: Path, traces: Path, predictions: Sequence[StepCurve]
) -> tuple[Offline, dict[str, Prices]]:
    """The walks of a record, and the prices of its server and of the prediction."""
    held = read_record(record)
    drafts = held["adaptive_drafts"]
    _, answers = curves_at(metrics)
    ways = {
        "the server's answers": Prices(answers.values(), drafts),
        "the prediction alone": Prices(predictions, drafts),
    }
    return offline_of(held, traces), ways


@click.command()
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--metrics", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True
)
@click.option(
    "--traces", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True
)
@click.option("--shape", type=click.Choice(sorted(shapes.SHAPES)), default="qwen3-8b")
@click.option("--layers", type=int, default=36, show_default=True)
@click.option("--hardware", default="H200", show_default=True)
def main(record: Path, metrics: Path, traces: Path, shape: str, layers: int, hardware: str) -> None:
    """Tell how well a server's answers price steps; see the module's text."""
    found = predicted(shape, layers, hardware)
    click.echo(table(*of_record(record, metrics, traces, found)))


if __name__ == "__main__":
    main()
