"""The record as the tables of ``docs/models.md``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.recipes.verdicts import Verdict, reasons

RECORD = Path(__file__).parents[1] / "results" / "2026-11-28-recipes"
VERDICTS = "verdicts.csv"
ABOUT = "about.json"

POPULATIONS = {
    "default": "default command of each recipe",
    "speculating": "the same with drafts, where a recipe offers them",
    "guide": "written out in the recipes' guides",
    "strategy single_node_tp": "one node, tensor parallel",
    "strategy single_node_tep": "one node, tensor and expert parallel",
    "strategy single_node_dep": "one node, data and expert parallel",
    "strategy multi_node_tp": "several nodes, tensor parallel",
    "strategy multi_node_tep": "several nodes, tensor and expert parallel",
    "strategy multi_node_dep": "several nodes, data and expert parallel",
    "strategy multi_node_tp_dp": "several nodes, tensor and data parallel",
    "strategy multi_node_tp_pp": "several nodes, tensor and pipeline parallel",
    "strategy pd_cluster": "prefill and decode apart (its decoding half)",
}
"""Kind of command -> what it is called."""


def read_verdicts(folder: Path = RECORD) -> list[Verdict]:
    """What was found for each command line."""
    with (folder / VERDICTS).open(encoding="utf-8", newline="") as file:
        return [Verdict(**row) for row in csv.DictReader(file)]


def section(folder: Path = RECORD) -> str:
    """Where the recipes are from, and how many of their servers are probed."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    head = (
        f"[vllm-project/recipes](https://github.com/vllm-project/recipes) at commit "
        f"`{about['recipes']}`, judged on {about['date']} with vLLM {about['vllm']}:\n\n"
        "| command lines | number | probed | the others |\n| --- | --- | --- | --- |\n"
    )
    return head + "".join(_rows(read_verdicts(folder)))


def _rows(verdicts: list[Verdict]) -> Iterator[str]:
    for kind, name in POPULATIONS.items():
        chosen = [each for each in verdicts if each.kind == kind]
        probed = sum(each.probes for each in chosen)
        share = f"{probed} ({100 * probed / len(chosen):.0f} %)"
        why = "; ".join(f"{count} {reason}" for reason, count in reasons(chosen).items()) or "-"
        yield f"| {name} | {len(chosen)} | {share} | {why} |\n"
