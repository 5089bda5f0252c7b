"""Reads the recipes and writes what was found; see the package's text."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks.recipes.commands import recipes_in
from benchmarks.recipes.model_facts import Sources
from benchmarks.recipes.page import ABOUT, RECORD, VERDICTS
from benchmarks.recipes.verdicts import Verdict, reasons, verdict
from vllm_nfp.adapter.versions import installed_version
from vllm_nfp.cli.common import Refusal

ARCHITECTURES = "architectures.csv"


@click.command()
@click.argument("recipes", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--commit", required=True, help="Commit of the recipes, for the record.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=RECORD)
def main(recipes: Path, commit: str, out: Path) -> None:
    """Judge every command line in RECIPES, a checkout of vllm-project/recipes."""
    try:
        found = recipes_in(recipes)
    except FileNotFoundError as error:
        raise Refusal(str(error)) from None
    architectures = read_architectures(out / ARCHITECTURES)
    missing = [recipe.model for recipe in found if recipe.model not in architectures]
    if missing:
        raise Refusal(
            f"{out / ARCHITECTURES} names no architecture of {', '.join(missing)}: add it"
        )
    sources = _installed()
    facts = {name: sources.facts(name) for name in set(architectures.values())}
    verdicts = [
        verdict(command, facts[architectures[recipe.model]])
        for recipe in found
        for command in recipe.commands()
    ]
    _write(out / VERDICTS, verdicts)
    about = {"recipes": commit, "date": f"{datetime.now(UTC):%Y-%m-%d}",
             "vllm": installed_version(), "vllm_nfp": _own_commit()}  # fmt: skip
    (out / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    _print(verdicts)


def read_architectures(path: Path) -> dict[str, str]:
    """Model -> architecture."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["model"]: row["architecture"] for row in csv.DictReader(file)}


def _installed() -> Sources:
    import vllm
    from vllm.model_executor.models.registry import _VLLM_MODELS

    return Sources(Path(vllm.__file__).parent, _VLLM_MODELS)


def _own_commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _write(path: Path, verdicts: Iterable[Verdict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Verdict)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, verdicts))


def _print(verdicts: list[Verdict]) -> None:
    for kind in dict.fromkeys(each.kind for each in verdicts):
        chosen = [each for each in verdicts if each.kind == kind]
        probing = sum(each.probes for each in chosen)
        click.echo(f"{kind}: probes in {probing} of {len(chosen)}")
        for reason, count in reasons(chosen).items():
            click.echo(f"    {count} {reason}")


if __name__ == "__main__":
    main()
