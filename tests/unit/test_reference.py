"""The reference pages say what the code says."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from vllm_nfp.adapter.feature_list import FEATURES
from vllm_nfp.config import INTERNAL_FIELDS, ProbeConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["metrics.md", "settings.md", "models.md", "parallel.md"])
def test_the_committed_page_is_what_the_code_says(reference: ModuleType, name: str) -> None:
    assert (DOCS / name).read_text() == reference.PAGES[name](), "run python docs/reference.py"


def test_every_metric_in_the_code_has_a_row() -> None:
    """Names are looked up in the sources, so that a family which the page leaves out is found."""
    sources = (DOCS.parent / "vllm_nfp" / "metrics").rglob("*.py")
    named = {n for path in sources for n in re.findall(r'"(vllm_nfp_\w+)"', path.read_text())}
    table = re.findall(r"^\| `(\w+)`", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    rows = {row.removesuffix("_total") for row in table}
    assert len(named) > 30
    assert named <= rows
    everything = "".join(p.read_text() for p in (DOCS.parent / "vllm_nfp").rglob("*.py"))
    ends = "_(basis|lower|upper)$"  # of families that are made together with the one they are of
    names = {row: (row, re.sub(ends, "", row)) for row in rows}
    assert [r for r in rows if not any(f'"{name}' in everything for name in names[r])] == []


def test_every_setting_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", (DOCS / "settings.md").read_text(), re.M)
    names = {field.name for field in dataclasses.fields(ProbeConfig)} - INTERNAL_FIELDS
    assert {name for name, _ in rows} == names
    assert all(meaning.endswith(".") for _, meaning in rows)


def test_every_feature_is_in_one_of_the_tables() -> None:
    """And the tables have no others."""
    pages = "".join((DOCS / name).read_text() for name in ("models.md", "parallel.md"))
    parts = re.findall(r"<!-- generated: (models|parallelism) -->(.*?)<!-- end", pages, re.DOTALL)
    rows = [row for _, part in parts for row in re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE)]
    named = [row for row in rows if row not in ("---", "probed", "passive", "off")]
    assert sorted(named) == sorted(feature.name for feature in FEATURES)
    assert len(set(named)) == len(named)
