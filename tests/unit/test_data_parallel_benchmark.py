"""benchmarks/engines/data_parallel.py: what its servers are started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.engines.data_parallel import keep_engines, plans, same_pairs
from benchmarks.engines.tensor_parallel import TABLE
from benchmarks.serving.table_servers import Session


def test_engines_share_the_experts_and_only_one_server_has_the_probe() -> None:
    probed, plain = plans(4)
    assert probed.flags[-2:] == plain.flags[-2:] == ("--data-parallel-size", "4")
    assert probed.expert_parallel and plain.expert_parallel
    assert (probed.probe, plain.probe) == (TABLE, None)


@pytest.mark.parametrize("trial", [False, True])
def test_at_the_defaults_the_probe_has_no_setting_and_keeps_its_samples(
    trial: bool, tmp_path: Path
) -> None:
    probed, plain = plans(2, trial, at_defaults=True)
    assert probed.probe == {}
    session = Session(tmp_path, tmp_path, 1.0)
    specs = [session._spec(plan, 8000) for plan in (probed, plain)]
    assert [spec.probe for spec in specs] == [{}, None]
    assert [spec.output_dir for spec in specs] == [tmp_path / "probe-dp-ep", None]


def test_engines_of_a_trial_have_as_many_ranks_as_asked_and_one_api_server() -> None:
    for plan in plans(2, trial=True, tensor=2):
        assert plan.tensor_parallel == 2
        at = plan.flags.index("--api-server-count")
        assert plan.flags[at + 1] == "1"
    assert "--api-server-count" not in plans(2)[0].flags, "GPUs run vLLM's default"


def test_pairs_of_the_load_are_kept_beside_those_of_the_outputs(tmp_path: Path) -> None:
    probed, _ = plans(4, trial=True)
    session = Session(tmp_path, tmp_path, 1.0)
    folder = tmp_path / f"probe-{probed.name}"
    folder.mkdir()

    def has_measured(pairs: int) -> None:
        for engine in range(4):
            counts = {"measured": pairs + engine, "idle": 0}
            snapshot = {
                "state": "steady", "reason": "", "probes": counts, "curves": [], "boundaries": [],
            }  # fmt: skip
            (folder / f"engine-{engine}.json").write_text(json.dumps(snapshot))
            (folder / f"samples-{engine}.jsonl").write_text("")

    has_measured(5)
    after_load = keep_engines(session, probed, 4)
    has_measured(7)
    keep_engines(session, probed, 4, after_load)
    kept = json.loads((tmp_path / "pairs.json").read_text())
    assert kept["load"]["moe-engine-3"][2]["measured"] == 8
    assert kept["outputs"]["moe-engine-3"][2]["measured"] == 10


def test_engines_with_other_pairs_or_another_order_are_told(tmp_path: Path) -> None:
    def written(*pairs: tuple[int, bool]) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        rows = [
            {"many": {"shape": {"positions": n}, "step_seconds": at}, "baseline_first": first}
            for at, (n, first) in enumerate(pairs)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    one, longer = written((2, True), (4, False)), written((2, True), (4, False), (4, True))
    assert same_pairs([one, longer]) == {"compared": 2, "alike": True}
    for other in (written((4, False), (2, True)), written((2, True), (4, True))):
        assert not same_pairs([one, longer, other])["alike"]
