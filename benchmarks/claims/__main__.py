"""Run, check and list the claims; see the package's text."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import click

from benchmarks.claims.checking import check
from benchmarks.claims.evidence import PAGE, page
from benchmarks.claims.recorded import CLAIMS, PLANNED
from vllm_nfp.cli.common import Refusal

ROOT = Path(__file__).resolve().parents[2]
RUNS = {one.name: one.run for one in CLAIMS} | {one.name: one.run for one in PLANNED}
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Published figures and their records."""


@main.command("check")
@click.option("--public", type=FILE, default=None, help="Points that others published.")
def check_all(public: Path | None) -> None:
    """Compute every figure again from its record, and compare it with README and docs."""
    found = [check(ROOT, claim, public) for claim in CLAIMS]
    for one in found:
        state = "differs" if one.faults else "agrees"
        if one.figures is None:
            state = "not computed (give --public)"
        click.echo(f"{one.claim.name}: {state}, code {one.age}")
    faults = [fault for one in found for fault in one.faults]
    written = (ROOT / PAGE).read_text(encoding="utf-8") if (ROOT / PAGE).exists() else ""
    if written != page(found, PLANNED):
        faults.append(f"{PAGE} is not current: python -m benchmarks.claims evidence")
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        raise SystemExit(1)


@main.command("evidence")
def write_evidence() -> None:
    """Write docs/evidence.md from the records."""
    found = [check(ROOT, claim) for claim in CLAIMS]
    (ROOT / PAGE).write_text(page(found, PLANNED), encoding="utf-8")


@main.command("run")
@click.argument("name", type=click.Choice(sorted(RUNS)))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--within", type=int, default=None, help="Seconds in which each command ends.")
def run(name: str, out: Path, within: int | None) -> None:
    """Make a claim's record again; needs a GPU."""
    if shutil.which("nvidia-smi") is None:
        raise Refusal(
            f"claim {name!r} needs an NVIDIA GPU, and nvidia-smi is not on the PATH: run it on a "
            "GPU host, or check the kept records with 'python -m benchmarks.claims check'"
        )
    try:
        commands = RUNS[name].filled(shlex.quote(str(out.resolve())), within)
    except ValueError as error:
        raise Refusal(f"claim {name!r}: {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    for command in commands:
        click.echo(command)
        subprocess.run(shlex.split(command), cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
