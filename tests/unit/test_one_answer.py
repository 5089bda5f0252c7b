"""One question has one answer, whichever of our commands, pages and metrics is asked.

All of them are asked about the recorded runs on an H100, dense and MoE.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, Counter, generate_latest

from vllm_nfp import predict, recommend, watch
from vllm_nfp.cli import main
from vllm_nfp.draft import DraftCost, sources
from vllm_nfp.draft.recommend import RecommendError
from vllm_nfp.files import write_whole
from vllm_nfp.metrics.collector import NfpCollector
from vllm_nfp.report import render
from vllm_nfp.report.modules import sections
from vllm_nfp.report.page import choose_epsilon
from vllm_nfp.results import scrape
from vllm_nfp.results.control import ControlSnapshot, ControlState, control_file
from vllm_nfp.results.profile import Profile, save_profile
from vllm_nfp.results.snapshot import Snapshot, engine_file, write_snapshot
from vllm_nfp.strict_json import encode
from vllm_nfp.types import LiveStep, State

ACCEPTANCES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.97)
LISTS = ((0.9, 0.8, 0.7), (0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9), (0.6,))
URL = "http://localhost:1"
Cell = tuple[int, int]
Answer = dict[Cell, int]
"""Draft length by batch size and context."""


@pytest.fixture(params=["dense", "moe"])
def profile(request: pytest.FixtureRequest) -> Profile:
    found: Profile = request.getfixturevalue(f"{request.param}_profile")
    return found


def cells_of(profile: Profile) -> list[Cell]:
    return sorted({(b, c) for module, b, c in profile.cells if module == "model"})


class Server:
    """The /metrics of a server whose probe has found what a profile holds."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        self.folder = folder
        self.profile = profile
        self.registry = CollectorRegistry()

    def __call__(self, context: int, acceptance: float | None = None) -> str:
        """The text, with traffic at this context and, if given, ``draft_acceptance``."""
        snapshot = Snapshot(
            self.profile.model.name,
            "0",
            State.STEADY,
            curves=self.profile.curves,
            boundaries=self.profile.boundaries,
            predictions=self.profile.predictions,
            live=LiveStep(8, context, 1),
        )
        write_snapshot(engine_file(str(self.folder), "0"), snapshot)
        collector = NfpCollector(str(self.folder), acceptance, self.registry)
        whole = CollectorRegistry()
        whole.register(collector)
        return (generate_latest(self.registry) + generate_latest(whole)).decode()

    def counts(self, acceptance: Sequence[float]) -> None:
        """Let vLLM have counted drafts that were accepted with these chances."""
        of = {"model_name": self.profile.model.name, "engine": "0"}
        for name, value in (("drafts", 1000), ("draft_tokens", 1000 * len(acceptance))):
            counter = Counter(f"vllm:spec_decode_num_{name}", "-", list(of), registry=self.registry)
            counter.labels(**of).inc(value)
        places = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "-",
            [*of, "position"],
            registry=self.registry,
        )
        for place, rate in enumerate(itertools.accumulate(acceptance, lambda a, b: a * b)):
            places.labels(**of, position=str(place)).inc(1000 * rate)

    def controls(self, method: str, **token_seconds: float) -> None:
        """Let a controller of draft lengths have learned what a drafted token takes."""
        seconds = {size.removeprefix("b"): value for size, value in token_seconds.items()}
        told = ControlSnapshot(
            self.profile.model.name, "0", ControlState.DECIDING, "", method, draft_seconds=seconds
        )
        write_whole(control_file(str(self.folder), "0"), encode(told))


@pytest.fixture
def server(tmp_path: Path, profile: Profile) -> Server:
    (tmp_path / "run").mkdir()
    return Server(tmp_path / "run", profile)


@pytest.fixture
def at_url(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def show(text: str) -> None:
        monkeypatch.setattr(scrape, "fetch", lambda *_: text)
        monkeypatch.setattr("vllm_nfp.draft.server.server_version", lambda _url: "0.32.0")

    return show


def by_cell(rows: Sequence[Any]) -> Answer:
    return {
        (row.batch_size_first, row.context): row.draft_length
        for row in rows
        if row.basis == "measured"
    }


def of_cli(source: str | Path, *flags: str) -> Answer:
    done = CliRunner().invoke(main, ["recommend", str(source), "--json", *flags])
    assert done.exit_code == 0, done.output
    return {
        (row["batch_size_first"], row["context"]): row["draft_length"]
        for row in json.loads(done.stdout)["rows"]
        if row["basis"] == "measured"
    }


def of_metric(text: str, context: int) -> Answer:
    line = r'^vllm_nfp_recommended_draft_length{batch_size="(\d+)",[^}]*} (\S+)$'
    found = re.findall(line, text, re.MULTILINE)
    assert len(found) == text.count("\nvllm_nfp_recommended_draft_length{")
    return {(int(batch_size), context): int(float(value)) for batch_size, value in found}


def of_watch(text: str, context: int) -> Answer:
    (engine,) = watch.read(text).engines
    return {(batch_size, context): k for batch_size, k in engine.recommended.items()}


def of_report(profile: Profile) -> dict[float, Answer]:
    """What the rendered page shows, for each acceptance."""
    text = (
        render(profile, acceptances=ACCEPTANCES)
        .split('aria-label="Draft lengths"', 1)[1]
        .split("</table>", 1)[0]
    )
    found: dict[float, Answer] = {a: {} for a in ACCEPTANCES}
    rows = re.findall(r'<th scope="row">(\d+)</th><td>(\d+)</td>(.*)</tr>', text)
    for batch_size, context, shown in rows:
        lengths = re.findall(r"K = (\d+)", shown)
        for acceptance, length in zip(ACCEPTANCES, lengths, strict=True):
            found[acceptance][int(batch_size), int(context)] = int(length)
    return found


def at(answer: Answer, context: int) -> Answer:
    return {cell: k for cell, k in answer.items() if cell[1] == context}


def test_report_recommend_metric_and_watch_choose_one_draft_length(
    profile: Profile,
    server: Server,
    at_url: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """At the commit before, the report differed in 28 of 54 cells, and a URL in 28 of 120."""
    path = tmp_path / "profile.json"
    save_profile(path, profile)
    shown = of_report(profile)
    different = set()
    for acceptance in ACCEPTANCES:
        wanted = by_cell(recommend(profile, acceptance).rows)
        assert sorted(wanted) == cells_of(profile)
        different |= set(wanted.values())
        assert shown[acceptance] == wanted
        assert of_cli(path, "--acceptance", str(acceptance)) == wanted
        for context in sorted({cell[1] for cell in wanted}):
            text = server(context, acceptance)
            assert of_metric(text, context) == at(wanted, context)
            assert of_watch(text, context) == at(wanted, context)
        at_url(text)
        assert by_cell(recommend(URL, acceptance).rows) == wanted
        assert of_cli(URL, "--acceptance", str(acceptance)) == wanted
    assert len(different) > 10, "the choice depends on the cell"


def costs() -> Iterator[tuple[str, dict[str, float], DraftCost]]:
    yield "ngram", {}, DraftCost()
    yield "ngram_gpu", {"b8": 0.001}, DraftCost()
    yield "eagle3", {"b1": 1e-4, "b8": 2e-4, "b32": 9e-4}, DraftCost(seconds_per_token=2e-4)
    yield "mtp", {"b1": 0.0, "b8": 5e-5}, DraftCost(seconds_per_token=5e-5)


@pytest.mark.parametrize(("method", "told", "cost"), list(costs()))
def test_what_drafts_cost_on_a_server_counts_everywhere(
    method: str,
    told: dict[str, float],
    cost: DraftCost,
    profile: Profile,
    server: Server,
    at_url: Callable[[str], None],
) -> None:
    server.controls(method, **told)
    for acceptance in (0.6, 0.9):
        wanted = by_cell(recommend(profile, acceptance, cost=cost).rows)
        for context in sorted({cell[1] for cell in wanted}):
            text = server(context, acceptance)
            assert of_metric(text, context) == at(wanted, context)
            assert of_watch(text, context) == at(wanted, context)
        at_url(text)
        assert by_cell(recommend(URL, acceptance).rows) == wanted
        assert of_cli(URL, "--acceptance", str(acceptance)) == wanted
    free = by_cell(recommend(profile, 0.9).rows)
    assert (wanted == free) == (cost == DraftCost())


@pytest.mark.parametrize(
    ("method", "told"),
    [("eagle", {}), ("mtp", {"b8": 0.0}), ("mtp", {"b8": -1.0}), ("dflash", {"b8": 1e-4})],
)
def test_drafts_of_unknown_cost_are_recommended_by_none(
    method: str,
    told: dict[str, float],
    server: Server,
    profile: Profile,
    at_url: Callable[[str], None],
) -> None:
    server.controls(method, **told)
    text = server(1024, 0.8)
    assert of_metric(text, 1024) == of_watch(text, 1024) == {}
    at_url(text)
    with pytest.raises(RecommendError, match=r"draft_(cost|method) is needed"):
        recommend(URL, 0.8)
    assert CliRunner().invoke(main, ["recommend", URL, "--acceptance", "0.8"]).exit_code == 2
    given = DraftCost(seconds_per_token=1e-4)
    rows = recommend(URL, 0.8, cost=given).rows
    assert by_cell(rows) == by_cell(recommend(profile, 0.8, cost=given).rows)


@pytest.mark.parametrize("acceptance", LISTS)
def test_no_answer_goes_beyond_the_acceptance_that_is_known(
    acceptance: tuple[float, ...],
    profile: Profile,
    server: Server,
    at_url: Callable[[str], None],
    tmp_path: Path,
) -> None:
    path = tmp_path / "profile.json"
    save_profile(path, profile)
    wanted = by_cell(recommend(profile, acceptance).rows)
    assert 0 < max(wanted.values()) <= len(acceptance)
    listed = ",".join(map(str, acceptance))
    assert of_cli(path, "--acceptance-per-position", listed) == wanted
    server.counts(acceptance)
    for context in sorted({cell[1] for cell in wanted}):
        text = server(context)
        assert of_metric(text, context) == at(wanted, context)
        assert of_watch(text, context) == at(wanted, context)
    at_url(text)
    assert of_cli(URL) == wanted
    # Asked for, later drafts count like the last known one, from a file and a server alike.
    extended = of_cli(path, "--acceptance-per-position", listed, "--extend-acceptance")
    assert of_cli(URL, "--extend-acceptance") == extended != wanted


def test_a_cell_that_was_not_measured_is_so_everywhere(
    profile: Profile,
    tmp_path: Path,
    at_url: Callable[[str], None],
) -> None:
    """Batch size 32 at the longest context does not fit: no source makes up a number for it."""
    gone = (32, 16384)

    def without(rows: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(row for row in rows if (row.batch_size, row.context) != gone)

    partly = replace(
        profile, curves=without(profile.curves), boundaries=without(profile.boundaries)
    )
    server = Server(tmp_path, partly)
    text = server(16384, 0.8)
    assert gone not in of_metric(text, 16384)
    at_url(text)
    for source in (partly, URL):
        (row,) = (
            row
            for row in recommend(source, 0.8).rows
            if (row.batch_size_first, row.context) == gone
        )
        assert (row.basis, row.draft_length, row.length_text) == ("unknown", 0, "0?")
    shown = render(partly).split('aria-label="Draft lengths"', 1)[1].split("</table>", 1)[0]
    row_text = shown.split('<th scope="row">32</th><td>16384</td>', 1)[1].split("</tr>", 1)[0]
    assert re.findall(r"K = (\S+?)</b>", row_text) == ["0?"] * 3


def test_free_positions_are_the_same_number_everywhere(
    profile: Profile, server: Server, at_url: Callable[[str], None]
) -> None:
    """NFP by report's rows, table, watch and /metrics, and recommend's free K, which is NFP - 1."""
    text = server(1024)
    at_url(text)
    table = json.loads(CliRunner().invoke(main, ["table", URL, "--json"]).stdout)["rows"]
    key = ("module", "batch_size", "context", "epsilon")
    served = {tuple(row[name] for name in key): row for row in table}
    watched = {
        (r.module, r.batch_size, r.context, r.epsilon): r for r in watch.read(text).scrape.rows
    }
    assert len(served) == len(watched) == len(profile.boundaries)
    for row in profile.boundaries:
        of = (row.module, row.batch_size, row.context, row.epsilon)
        wanted = (row.positions, row.lower, row.upper, row.at_limit)
        assert tuple(served[of][n] for n in ("positions", "lower", "upper", "at_limit")) == wanted
        seen = watched[of]
        assert (seen.positions, seen.lower, seen.upper, seen.at_limit) == wanted
    for epsilon in profile.epsilons:
        free = {
            (row.batch_size, row.context): (row.positions - 1, row.at_limit)
            for row in profile.boundaries
            if (row.module, row.epsilon) == ("model", epsilon)
        }
        for source in (profile, URL):
            rows = recommend(source, 0.7, epsilon=epsilon).rows
            told = {
                (row.batch_size_first, row.context): (row.free_draft_length, row.free_at_limit)
                for row in rows
                if row.basis == "measured"
            }
            assert told == free


def test_nfp_beyond_cuda_graphs_is_what_the_probe_reports(dense_profile: Profile) -> None:
    """What the host needs at least weighs drafts, and does not make a second NFP."""
    cell = ("model", 1, 1024)
    one = dense_profile.curves_by_cell()[cell][0].median_seconds
    curves = tuple(
        replace(row, execution="none", seconds_upper=2.0 * one)
        if (row.module, row.batch_size, row.context) == cell and row.positions > 16
        else replace(row, execution="full")
        for row in dense_profile.curves
    )
    (curve,) = (
        c
        for c in sources.from_profile(replace(dense_profile, curves=curves)).curves
        if (c.batch_size, c.context) == cell[1:]
    )
    assert curve.ratio(24) == pytest.approx(2.5)
    assert curve.free_positions(0.1) == (64, True)


def test_predictions_are_the_same_in_predict_recommend_profile_and_metrics(
    dense_profile: Profile, tmp_path: Path
) -> None:
    from benchmarks.shapes import SHAPES

    config = {**SHAPES["qwen3-8b"], "num_hidden_layers": dense_profile.model.num_layers}
    sizes, contexts = dense_profile.probe.batch_sizes, dense_profile.probe.contexts
    found = predict(config, "H100-SXM", sizes, contexts, dense_profile.epsilons)
    asked = {
        (row.module, row.batch_size, row.context, row.epsilon): (row.nfp, row.idle_compute_nfp)
        for row in found.rows
    }
    kept = {
        (row.module, row.batch_size, row.context, row.epsilon): (
            row.positions,
            row.idle_compute_positions,
        )
        for row in dense_profile.predictions
    }
    assert asked == kept
    seen = {
        (row.module, row.batch_size, row.context, row.epsilon): (row.predicted, row.idle_compute)
        for row in scrape.parse(Server(tmp_path, dense_profile)(1024)).rows
    }
    assert {key: asked[key] for key in seen} == seen
    for epsilon in dense_profile.epsilons:
        for row in recommend(found, 0.7, epsilon=epsilon).rows:
            if row.basis == "measured":
                nfp, _ = asked["model", row.batch_size_first, row.context, epsilon]
                assert row.free_draft_length == nfp - 1


def test_all_begin_with_the_same_tolerance_and_order_of_modules(
    profile: Profile, tmp_path: Path, at_url: Callable[[str], None]
) -> None:
    odd = replace(
        profile,
        boundaries=tuple(
            replace(row, epsilon={0.05: 0.02, 0.1: 0.15, 0.2: 0.3}[row.epsilon])
            for row in profile.boundaries
        ),
        predictions=(),
    )
    text = Server(tmp_path, odd)(1024)
    assert watch.choose_epsilon(watch.read(text).epsilons) == 0.15
    assert choose_epsilon(odd, None) == 0.15
    at_url(text)
    modules = list(dict.fromkeys(section.name for section in sections(odd, 0.15)))
    assert modules[0] == "model"
    for command in (["table", URL], ["watch", URL, "--once"]):
        lines = CliRunner().invoke(main, command, env={"COLUMNS": "200"}).stdout.splitlines()
        words = [word for line in lines for word in line.split()]
        shown = list(dict.fromkeys(word for word in words if word in modules))
        # watch puts what does not depend on the context beside the whole step.
        assert shown == modules if command[0] == "table" else sorted(shown) == sorted(modules)
        assert shown[0] == "model"
