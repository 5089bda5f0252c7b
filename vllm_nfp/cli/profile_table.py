"""Prints the NFP table of a profile."""

from __future__ import annotations

from rich import box
from rich.table import Table

from vllm_nfp.cli.terminal import Console
from vllm_nfp.results.profile import Profile
from vllm_nfp.types import Boundary, reading_order


def nfp_text(row: Boundary) -> str:
    """NFP with its interval; "+" if the largest N measured is still free."""
    return f"{row.positions}{'+' if row.at_limit else ''} [{row.lower}, {row.upper}]"


def print_profile(profile: Profile) -> None:
    """Print the model, the device and the NFP table."""
    console = Console()
    environment = profile.environment
    console.print(
        f"{profile.model.name} on {environment.device.name}, vLLM {environment.vllm}, "
        f"{environment.dtype}",
        highlight=False,
        markup=False,
    )
    for cell, reason in profile.run.skipped_cells.items():
        console.print(f"{cell} was left out: {reason}", highlight=False, markup=False)
    if profile.run.missing_pairs:
        console.print(
            f"time ran out before every point had its samples: "
            f"{profile.run.missing_pairs} pairs are missing",
            highlight=False,
        )
    console.print(_table(profile))
    if any(row.at_limit for row in profile.boundaries):
        console.print("+ = still free at the largest N measured")


def _table(profile: Profile) -> Table:
    table = Table(
        title="Free positions per sequence (NFP) [95 % interval]", box=box.SIMPLE, padding=(0, 1)
    )
    table.add_column("module", no_wrap=True)
    for name in ("L", "B", *(f"within {epsilon:.0%}" for epsilon in profile.epsilons)):
        table.add_column(name, justify="right", no_wrap=True)
    found = {(r.module, r.batch_size, r.context, r.epsilon): r for r in profile.boundaries}
    cells = {(r.module, r.batch_size, r.context) for r in profile.boundaries}
    for module, batch_size, context in sorted(
        cells, key=lambda cell: (reading_order(cell[0]), cell[2], cell[1])
    ):
        rows = [found.get((module, batch_size, context, e)) for e in profile.epsilons]
        texts = ("-" if row is None else nfp_text(row) for row in rows)
        table.add_row(module, str(context), str(batch_size), *texts)
    return table
