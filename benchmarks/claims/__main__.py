"""Run, check and list the claims; see the package's text."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import click

from benchmarks.claims.checking import check
from benchmarks.claims.evidence import PAGE, page
from benchmarks.claims.recorded import CLAIMS
from vllm_nfp.cli.common import Refusal

ROOT = Path(__file__).resolve().parents[2]
NAMES = [claim.name for claim in CLAIMS]


@click.group()
def main() -> None:
    """Published figures and their records."""


@main.command("check")
def check_all() -> None:
    """Compute every figure again from its record, and compare it with README and docs."""
    found = [check(ROOT, claim) for claim in CLAIMS]
    for one in found:
        state = "differs" if one.faults else "agrees"
        click.echo(f"{one.claim.name}: {state}, code {one.age}")
    faults = [fault for one in found for fault in one.faults]
    written = (ROOT / PAGE).read_text(encoding="utf-8") if (ROOT / PAGE).exists() else ""
    if written != page(found):
        faults.append(f"{PAGE} is not current: python -m benchmarks.claims evidence")
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        raise SystemExit(1)


@main.command("evidence")
def write_evidence() -> None:
    """Write docs/evidence.md from the records."""
    found = [check(ROOT, claim) for claim in CLAIMS]
    (ROOT / PAGE).write_text(page(found), encoding="utf-8")


@main.command("run")
@click.argument("name", type=click.Choice(NAMES))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
def run(name: str, out: Path) -> None:
    """Make a claim's record again; needs a GPU."""
    if shutil.which("nvidia-smi") is None:
        raise Refusal(
            f"claim {name!r} needs an NVIDIA GPU, and nvidia-smi is not on the PATH: run it on a "
            "GPU host, or check the kept records with 'python -m benchmarks.claims check'"
        )
    out.mkdir(parents=True, exist_ok=True)
    claim = CLAIMS[NAMES.index(name)]
    for command in claim.commands:
        words = [word.format(out=out.resolve()) for word in shlex.split(command)]
        click.echo(shlex.join(words))
        subprocess.run(words, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
