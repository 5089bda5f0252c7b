"""How fast a host was at each load of a comparison, and what each way asks of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.verification import host_parts, host_speed


def row(contender: str, requests: int, common: float, host: float) -> dict[str, Any]:
    """100 steps of 6 ms."""
    parts = {"prepare_attn": common, "execute_model": 0.4 * host, "sample_tokens": 0.6 * host}
    return {
        "contender": contender, "context": "1k", "requests": requests, "seconds": 0.6,
        "host": {name: {"calls": 100 - (name != "execute_model"), "ms": 100 * ms}
                 for name, ms in parts.items()},
    }  # fmt: skip


def test_a_slow_host_is_told_from_more_work(tmp_path: Path, capsys: Any) -> None:
    """The second way is slower on a host half as fast, and asks no more of it."""
    record = tmp_path / "record.json"
    rows = [row("one", 1, 0.1, 3.0), row("two", 1, 0.2, 6.0), row("three", 8, 0.1, 5.0)]
    record.write_text(json.dumps({"rows": [*rows, row("one", 128, 0.1, 30.0)]}))
    host_speed.main.main([str(record)], standalone_mode=False)
    shown = capsys.readouterr().out.splitlines()
    assert "| two | 1k | 1 | 6.00 | 0.200 | 6.00 | 3.00 |" in shown
    assert shown[-3:] == [
        "| one | 1 | 0.100, 0.100 | 3.00 |",
        "| two | 1 | 0.200, 0.200 | 3.00 |",
        "| three | 1 | 0.100, 0.100 | 5.00 |",
    ]


def test_single_steps_are_told_where_they_were_kept(tmp_path: Path, capsys: Any) -> None:
    record = tmp_path / "record.json"
    kept = row("one", 2, 0.1, 3.0)
    for part, slow in ((host_parts.STEP, 9.0), (host_parts.WORK, 4.0)):
        cuts = {"median_ms": 3.0, "p90_ms": 3.5, "p99_ms": slow}
        kept["host"][part] = {"calls": 99, "ms": 300.0, **cuts}
    record.write_text(json.dumps({"rows": [kept, row("two", 2, 0.1, 3.0)]}))
    host_speed.main.main([str(record)], standalone_mode=False)
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "| one | 1k | 2 | 99 | 3.00, 3.50, 9.00 | 3.00, 3.50, 4.00 |"


def test_a_record_without_times_of_the_host_is_refused(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"rows": [{**row("one", 1, 0.1, 3.0), "host": {}}]}))
    with pytest.raises(click.ClickException, match="--time-host"):
        host_speed.main.main([str(record)], standalone_mode=False)
