"""What each piece of the surface is worth: the replay without it.

    python -m benchmarks.answers.replay_ablations benchmarks/results --only qwen3-14b,qwen2.5-7b

Prints a row for each variant and moment.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.answers.replay import METHODS, STARTUP_SECONDS, replay
from benchmarks.answers.replay_fit import hyperparameters_for
from benchmarks.answers.replay_recorded import all_servers
from benchmarks.answers.replay_score import Score
from vllm_nfp.surface import algebra, conditioning
from vllm_nfp.surface.kernel import Hyperparameters, ShapeKernel, TokenKernel
from vllm_nfp.surface.scale import UNKNOWN

MOMENTS = (0.0, 60.0, 600.0)
FAMILIES = "qwen3-14b,qwen2.5-7b,llama-3.2-1b,phi-3-mini,qwen3-235b-a22b,qwen3-8b"
"""Those whose kernels fitted no constant of the prediction; olmoe-1b-7b takes too long."""


def _one_process(hyper: Hyperparameters) -> Hyperparameters:
    """One process over B, N and L for the whole step, with DESIGN's sizes; no parts."""
    parts = hyper.wider(1e-3)
    return replace(
        parts, launch=hyper.launch, step=ShapeKernel(0.02, 0.04, 1.0, 1.0, 1.0, 0.02, 0.1)
    )


def _even_jumps(hyper: Hyperparameters) -> Hyperparameters:
    """Jumps between kernels as large at many tokens as at few."""

    def even(kernel: TokenKernel) -> TokenKernel:
        return replace(kernel, short=0.02, short_many=0.0)

    return replace(hyper, dense_ffn=even(hyper.dense_ffn), other=even(hyper.other))


@contextlib.contextmanager
def _own_size_unknown() -> Iterator[None]:
    with mock.patch.object(conditioning, "log_evidence", lambda *_: (UNKNOWN, 0.0)):
        yield


@contextlib.contextmanager
def _no_doubt() -> Iterator[None]:
    with mock.patch.object(algebra, "OUTLIER", 1e9):
        yield


@contextlib.contextmanager
def _launches_as_expected() -> Iterator[None]:
    with mock.patch.object(conditioning, "LAUNCH_KNOWN", 0.0):
        yield


Change = Callable[[Hyperparameters], Hyperparameters]
VARIANTS: dict[str, tuple[str, Change, Callable[[], contextlib.AbstractContextManager[None]]]] = {
    "as it is": ("surface", lambda h: h, contextlib.nullcontext),
    "prior alone": ("prior", lambda h: h, contextlib.nullcontext),
    "pairs at random": ("random pairs", lambda h: h, contextlib.nullcontext),
    "generic prior": ("generic", lambda h: h, contextlib.nullcontext),
    "one process for the whole step": ("surface", _one_process, contextlib.nullcontext),
    "even jumps between kernels": ("surface", _even_jumps, contextlib.nullcontext),
    "size of a model's errors not fitted": ("surface", lambda h: h, _own_size_unknown),
    "launch time not replaced": ("surface", lambda h: h, _launches_as_expected),
    "no doubt of single pairs": ("surface", lambda h: h, _no_doubt),
    "without real steps": ("without steps", lambda h: h, contextlib.nullcontext),
}


def _row(name: str, some: list[Score]) -> list[str]:
    def total(field: str) -> int:
        return sum(getattr(s, field) for s in some)

    errors = np.array([e for s in some for e in s.errors])
    return [
        name,
        f"{some[0].seconds:.0f} s",
        f"{total('near') / total('boundaries'):.1%}",
        f"{np.median(errors):.2%}, {np.quantile(errors, 0.9):.2%}",
        f"{total('covered') / total('points'):.1%}",
        f"{total('good_drafts') / total('drafts'):.1%}",
        f"{min(s.worst_draft for s in some):.3f}",
    ]


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", default=FAMILIES, help="Families or servers, separated by commas.")
def main(results: Path, only: str) -> None:
    """Print the table; see the module's text."""
    kept = results / "2026-11-27-cost-surface" / "hyperparameters.json"
    sets = json.loads(kept.read_text())
    wanted = set(only.split(","))
    servers = [s for s in all_servers(results) if wanted & {s.name, s.family}]
    table = Table(title=f"{len(servers)} servers: {only}")
    for column in (
        "variant", "after", "boundaries near", "error t(N)/t(1) median, p90", "interval holds",
        "drafts within 2 %", "worst",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for name, (method, change, context) in VARIANTS.items():
        scores: list[Score] = []
        with context():
            for server in servers:
                hyper = change(hyperparameters_for(server, sets))
                made = METHODS[method](server, hyper, 0)
                scores += replay(server, name, made, 0.0, 0, STARTUP_SECONDS, MOMENTS)
        for moment in MOMENTS:
            table.add_row(*_row(name, [s for s in scores if s.seconds == moment]))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
