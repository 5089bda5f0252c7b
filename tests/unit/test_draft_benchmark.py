"""The draft length benchmark on workers that answer at once, and the tables of its rows."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.drafts import engine as draft_engine
from benchmarks.drafts import lengths as draft_lengths
from benchmarks.drafts import models as draft_models
from benchmarks.drafts import plan as draft_plan
from benchmarks.drafts import rates as draft_rates
from benchmarks.drafts import run as draft_run
from benchmarks.drafts import times as draft_times
from benchmarks.drafts.cost import draft_cost
from benchmarks.serving import shapes
from vllm_nfp.draft import StepCurve
from vllm_nfp.draft.demand import FREE, DraftCost


class Answering:
    """Steps of 5 ms, and 1 ms more for each draft; the controller takes K = 2."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "engine.log"

    def seconds(self, length: int) -> float:
        return 5e-3 + 1e-3 * length

    def measure(self, command: draft_plan.Command) -> list[dict[str, Any]]:
        kind, _, rest = command.policy.partition(":")
        choices = {"none": (0,), "live": (2,), "round": draft_plan.LENGTHS}
        lengths = choices[kind] if kind != "fixed" else (int(rest),)
        # A slow spell meets the controller's own turns.
        seconds = {str(k): self.seconds(k) * (1.2 if kind == "live" else 1.0) for k in lengths}
        return [{
            "policy": command.policy, "acceptance": command.acceptance,
            "batch_size": command.batch_size, "context": command.context,
            "tokens": sum(round(100 * command.batch_size * (1 + k * 0.5)) for k in lengths),
            "steps": 100 * len(lengths), "elapsed": 100 * sum(seconds.values()),
            "lengths": dict.fromkeys(seconds, 100), "medians": seconds,
        }]  # fmt: skip

    def ask(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        if order["order"] == "trials":
            return [{"acceptance": 0.5, "batch_size": 1, "draft_length": 2, "ratio": 1.1}]
        if order["order"] == "draft_seconds":
            return [
                {"acceptance": 0.5, "draft_seconds": {"1": 1e-3, "4": 0.0}},
                {"acceptance": 0.7, "draft_seconds": {"1": 3e-3}},
            ]
        command = order["command"]
        return [
            {"policy": command["policy"], "acceptance": command["acceptance"],
             "context": command["context"], "place": place,
             "level": level, "tokens": level, "steps": 4, "elapsed": 1.0,
             "lengths": {"0": 4}, "medians": {"0": 0.25}}
            for place, level in enumerate(order["levels"])
        ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    worker: Any = Answering(tmp_path)
    monkeypatch.setattr(draft_run, "step_times", lambda *_: None)
    monkeypatch.setattr(draft_run, "recommended", lambda *_: [[1, 128, 4]])
    monkeypatch.setattr(draft_rates, "our_length", lambda *_: 3)
    monkeypatch.setattr(draft_rates, "step_times", lambda *_: None)
    run = draft_run.Run(worker, worker, tmp_path, time.monotonic() + 100, False, 0.01)
    run.warm_up(1024, (1,))
    run.points({1024: (1, 8), 8192: (4,)}, 2)
    run.ramps(0.7, 1024, 2)
    return tmp_path


class Scattering(Answering):
    """Now and then the host slows K = 0 down, as long as its step is short."""

    def __init__(self, folder: Path, slow: tuple[float, ...]) -> None:
        super().__init__(folder)
        self.slow = list(slow)

    def measure(self, command: draft_plan.Command) -> list[dict[str, Any]]:
        rows = super().measure(command)
        if command.policy == "round" and self.slow:
            rows[0]["medians"]["0"] *= self.slow.pop(0)
        return rows


@pytest.mark.parametrize(
    ("slow", "rounds"),
    [((), 2), ((1.0, 1.05), 2), ((1.0, 1.5), 3), ((1.5, 1.0, 1.4, 1.02), 5), ((1, 3, 2) * 2, 6)],
)
def test_rounds_that_disagree_are_repeated(
    tmp_path: Path, slow: tuple[float, ...], rounds: int
) -> None:
    worker: Any = Scattering(tmp_path, slow)
    run = draft_run.Run(worker, worker, tmp_path, time.monotonic() + 100, False, 0.01)
    run.points({1024: (1,)}, 2)
    rows = draft_times.read_rows(tmp_path / "points.jsonl")
    assert sum(row["policy"] == "round" for row in rows) == rounds
    assert sum(row["policy"] == "none" for row in rows) == rounds
    assert sum(row["policy"] == "live" for row in rows) == 2 * 3


def test_steps_without_a_cuda_graph_may_scatter() -> None:
    def row(medians: dict[str, float]) -> dict[str, Any]:
        return {"policy": "round", "batch_size": 64, "medians": medians}

    first = row({"7": 1.0, "8": 1.0})
    assert draft_plan.agree([first, row({"7": 1.0, "8": 2.0})])
    assert not draft_plan.agree([first, row({"7": 1.1})])


def test_contexts_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        draft_lengths.main, ["--only-long", "--only-short", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 2
    assert "--only-long and --only-short leave no context" in done.output
    assert not (tmp_path / "out").exists()


def test_every_policy_is_measured_at_every_point(folder: Path) -> None:
    rows = draft_times.read_rows(folder / "points.jsonl")
    assert len(rows) == 3 * 2 * (1 + 1 + 3)
    table = draft_rates.point_rows(folder)
    assert {(row["acceptance"], row["batch_size"]) for row in table} == {
        (a, b) for a in (0.5, 0.7, 0.9) for b in (1, 4, 8)
    }
    row = next(row for row in table if row["acceptance"] == 0.9 and row["batch_size"] == 8)
    # E(K) / (5 + K) is largest at K = 6 for acceptance 0.9.
    assert row["best"] == 6
    assert row["best_rate"] == pytest.approx(8 * (1 - 0.9**7) / 0.1 / 11e-3)
    assert row["live"] == pytest.approx((2.71 / 7) / ((1 - 0.9**7) / 0.1 / 11))
    assert row["live_timed"] == pytest.approx(row["live"] / 1.2)
    found = draft_rates.summary(table)
    assert found["points"] == 9
    assert found["live_beyond_2_percent"] > 0
    assert found["live_below_none_by_1_percent"] == 0


def test_the_ramp_is_summed_by_policy_and_round(folder: Path) -> None:
    rows = draft_rates.ramp_rows(folder)
    assert {row["policy"] for row in rows} >= {"none", "documented", "ours", "live", "fixed:8"}
    assert all(row["raw"] == pytest.approx(382 / 15) for row in rows)
    assert all(row["expected"] == pytest.approx(382 / 15 / 0.25) for row in rows)
    assert {row["round"] for row in rows} == {0, 1, 2, 3}  # at last the controller alone


def test_rows_of_earlier_runs_tell_of_one_length_each(tmp_path: Path) -> None:
    rows = [
        {"policy": f"fixed:{k}", "acceptance": 0.7, "context": 1024, "batch_size": 4,
         "medians": {str(k): seconds}}
        for k, seconds in ((0, 1.0), (0, 3.0), (0, 1.5), (3, 2.0))
    ]  # fmt: skip
    assert draft_times.length_seconds(rows) == {(1024, 4): {0: 1.5, 3: 2.0}}
    assert draft_times.spread(rows, (1024, 4)) == 3.0


def test_a_table_carries_its_last_length_on() -> None:
    table = [[1, 4, 3], [9, 16, 1]]
    lengths = [draft_rates.length_in(table, batch_size) for batch_size in (1, 6, 9, 100)]
    assert lengths == [3, 3, 1, 1]


FLAT = [StepCurve(b, c, 5e-3, ((1, 1.0), (9, 1.1))) for b in (1, 8, 128) for c in (1280, 8960)]
"""Verification that drafts hardly lengthen."""


def run_of(method: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    worker: Any = Answering(folder)
    monkeypatch.setattr(draft_run, "step_times", lambda *_: FLAT)
    monkeypatch.setattr(draft_rates, "step_times", lambda *_: FLAT)
    run = draft_run.Run(worker, worker, folder, time.monotonic() + 100, False, 0.01, method)
    run.points({1024: (1, 8)}, 1)
    run.ramps(0.7, 1024, 1)
    return folder


def test_a_head_is_judged_by_what_the_controllers_tell_of_its_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_of("eagle3", tmp_path, monkeypatch)
    for name in ("points", "ramps", "tables", "draft_costs"):
        assert {row["method"] for row in draft_times.read_rows(folder / f"{name}.jsonl")} == {
            "eagle3"
        }
    row = draft_times.read_rows(folder / "tables.jsonl")[0]
    assert row["draft_token_seconds"] == pytest.approx(2e-3)
    assert row["recommended"] == draft_rates.recommended(
        FLAT, 0.7, 1024, 128, DraftCost(seconds_per_token=2e-3)
    )
    found = draft_rates.point_rows(folder)
    assert {row["draft_token_seconds"] for row in found} == {row["draft_token_seconds"]}
    lengths = [row["ours_length"] for row in found if row["acceptance"] == 0.7]
    assert max(lengths) < draft_plan.LONGEST
    assert {row["method"] for row in draft_rates.ramp_rows(folder)} == {"eagle3"}


def test_the_table_of_a_ramp_is_that_of_its_own_context() -> None:
    steep = [StepCurve(b, 8960, 5e-3, ((1, 1.0), (9, 9.0))) for b in (1, 8, 128)]
    curves = [curve for curve in FLAT if curve.context == 1280] + steep
    assert draft_rates.recommended(curves, 0.9, 1024, 128) == [[1, 128, 8]]
    assert draft_rates.recommended(curves, 0.9, 8192, 128) == [[1, 128, 0]]


def test_the_engine_probes_at_the_defaults(tmp_path: Path) -> None:
    from vllm_nfp.config import ProbeConfig

    found, usual = draft_engine._probe_config(tmp_path), ProbeConfig()
    changed = {"draft_control", "draft_lengths", "run_dir", "output_dir"}
    for field in dataclasses.fields(ProbeConfig):
        if field.name not in changed:
            assert getattr(found, field.name) == getattr(usual, field.name), field.name


def test_looking_up_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_of("ngram_gpu", tmp_path, monkeypatch)
    assert not (folder / "draft_costs.jsonl").exists()
    found = draft_rates.point_rows(folder)
    assert {row["draft_token_seconds"] for row in found} == {0.0}
    assert min(row["ours_length"] for row in found) >= 6  # within 1 % of the longest
    assert draft_times.method_of([{"policy": "none"}]) == "ngram_gpu", "earlier rows do not tell"


def test_where_no_controller_tells_the_rounds_do() -> None:
    seconds = {str(k): 5e-3 * (1 + 0.0125 * k) + 4e-4 * max(k, 1) for k in draft_plan.LENGTHS}
    rounds = [
        {"context": 1024, "batch_size": b, "medians": seconds}
        for b in (1, 8, 9)  # of the last one no curve tells
    ]
    found = draft_cost("eagle", [{"draft_seconds": {"1": 0.0}}], rounds, FLAT)
    assert found.seconds_per_token == pytest.approx(4e-4)
    assert draft_cost("ngram_gpu", [], rounds, FLAT) == FREE
    with pytest.raises(ValueError, match="drafted by eagle3"):
        draft_cost("eagle3", [], rounds[2:], FLAT)


def test_a_head_that_costs_much_drafts_one_token_with_the_pass_that_it_makes_anyway() -> None:
    found = draft_rates.recommended(FLAT, 0.5, 1024, 128, DraftCost(seconds_per_token=1.0))
    assert {length for *_, length in found} == {1}
    looked_up = draft_rates.recommended(FLAT, 0.5, 1024, 128, DraftCost(seconds_once=1.0))
    assert {length for *_, length in looked_up} == {0}


@pytest.mark.parametrize("layers", [2, 3, 6, 36])
def test_a_head_has_the_sizes_of_its_target(layers: int, tmp_path: Path) -> None:
    for method, name in (("eagle", "LlamaForCausalLM"), ("eagle3", "LlamaForCausalLMEagle3")):
        folder = shapes.write_draft_head(tmp_path / method, "qwen3-30b-a3b", method, layers)
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == [name]
        assert config["num_hidden_layers"] == 1
        sizes = ("hidden_size", "num_key_value_heads", "head_dim", "vocab_size")
        assert {k: config[k] for k in sizes} == {
            k: shapes.SHAPES["qwen3-30b-a3b"][k] for k in sizes
        }
    assert config["draft_vocab_size"] == 32000
    hidden = config["eagle_aux_hidden_state_layer_ids"]
    assert len(set(hidden)) == 3
    assert 0 <= min(hidden) <= max(hidden) <= layers


@pytest.mark.parametrize(
    ("name", "method", "layers", "reason"),
    [
        ("qwen3-8b", "ngram_gpu", 4, "has no head"),
        ("qwen3-8b", "eagle3", 1, "2 layers or more"),
        ("deepseek-v2-lite", "eagle", 4, "latent attention"),
        ("gpt-9", "eagle", 4, "unknown shape"),
    ],
)
def test_what_has_no_head_is_refused(
    name: str, method: str, layers: int, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        shapes.write_draft_head(tmp_path, name, method, layers)


def test_vllm_is_told_how_to_draft(tmp_path: Path) -> None:
    def told(method: str, tiny: bool) -> dict[str, Any]:
        settings = draft_plan.Settings("tiny", 2, 1.0, True, tiny, method)
        return draft_models.speculation(settings, tmp_path / "draft")

    assert told("ngram_gpu", False)["method"] == "ngram_gpu"
    assert told("ngram_gpu", True)["method"] == "ngram"
    assert not (tmp_path / "draft").exists()
    head = told("eagle3", False)
    assert head["model"] == str(tmp_path / "draft")
    assert (tmp_path / "draft" / "config.json").exists()
    assert len(head["synthetic_acceptance_rates"]) == head["num_speculative_tokens"]
    assert "prompt_lookup_max" not in head
    assert "rejection_sample_method" not in told("eagle3", True)


def test_the_caches_that_the_text_names_hold_the_long_sequences() -> None:
    assert draft_lengths.__doc__ is not None
    lines = [line.split() for line in draft_lengths.__doc__.splitlines()]
    rows = [line for line in lines if line and line[0] in shapes.SHAPES]
    assert len(rows) == 4
    for shape, long_batch, layers, kv_gib, plain_kv_gib, weights, in_all in rows:
        wanted = (shape, int(layers), float(plain_kv_gib), int(long_batch), "--plain-kv-gib")
        draft_lengths._check_room(*wanted)
        draft_lengths._check_room(shape, int(layers) + 1, float(kv_gib), int(long_batch), "-")
        assert float(kv_gib) + float(plain_kv_gib) + float(weights) == float(in_all) <= 70
    with pytest.raises(click.UsageError, match=r"--kv-gib 20 does not hold 64 .* give 26\.4"):
        draft_lengths._check_room("qwen3-8b", 12, 20.0, 64, "--kv-gib")


@pytest.mark.parametrize("only_long", [True, False])
def test_long_sequences_are_measured_from_the_largest_batch_on(only_long: bool) -> None:
    class Noting:
        def __init__(self) -> None:
            self.points_at: dict[int, tuple[int, ...]] = {}
            self.ramped = False

        def warm_up(self, context: int, sizes: tuple[int, ...]) -> None:
            assert sizes == (1, 64 if only_long else 128)

        def points(self, contexts: dict[int, tuple[int, ...]], rounds: int) -> None:
            self.points_at |= contexts

        def ramps(self, *_: object) -> None:
            self.ramped = True

    run: Any = Noting()
    draft_lengths._carry_out(run, False, False, 64, only_long, False)
    assert run.points_at[8192] == (64, 32, 16, 4, 1)
    assert (1024 in run.points_at) is run.ramped is not only_long
