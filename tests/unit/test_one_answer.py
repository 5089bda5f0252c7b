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
from vllm_nfp.draft.live.steps import cell_of
from vllm_nfp.draft.recommend import RecommendError
from vllm_nfp.files import write_whole
from vllm_nfp.metrics.collector import NfpCollector
from vllm_nfp.report import render
from vllm_nfp.report.modules import sections
from vllm_nfp.report.page import choose_epsilon
from vllm_nfp.results import fetching, scrape
from vllm_nfp.results.control import ControlSnapshot, ControlState, DraftChoice, control_file
from vllm_nfp.results.profile import Profile, save_profile
from vllm_nfp.results.snapshot import Snapshot, engine_file, write_snapshot
from vllm_nfp.strict_json import encode
from vllm_nfp.types import Basis, Boundary, CurvePoint, LiveStep, Module, State

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
        self.state = State.STEADY
        self.live: tuple[LiveStep, tuple[CurvePoint, ...]] | None = None
        self.registry = CollectorRegistry()

    def __call__(self, context: int, acceptance: float | None = None) -> str:
        """The text, with traffic at this context and, if given, ``draft_acceptance``."""
        snapshot = Snapshot(
            self.profile.model.name,
            "0",
            self.state,
            curves=self.profile.curves,
            boundaries=self.profile.boundaries,
            predictions=self.profile.predictions,
            live=LiveStep(8, context, 1) if self.live is None else self.live[0],
            live_curves=() if self.live is None else self.live[1],
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

    def settles(self, batch_size: int, context: int, length: int) -> None:
        """Let a controller have settled on a length with real steps, and run it."""
        key = cell_of(batch_size, context)
        choice = DraftChoice(*key, length, 0, "kept", None)
        told = ControlSnapshot(
            self.profile.model.name, "0", ControlState.DECIDING, "", "ngram",
            live_draft_length=length, rows=(choice,),
        )  # fmt: skip
        write_whole(control_file(str(self.folder), "0"), encode(told))


@pytest.fixture
def server(tmp_path: Path, profile: Profile) -> Server:
    (tmp_path / "run").mkdir()
    return Server(tmp_path / "run", profile)


@pytest.fixture
def at_url(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def show(text: str) -> None:
        monkeypatch.setattr(fetching, "fetch", lambda *_: text)
        monkeypatch.setattr("vllm_nfp.draft.server.server_version", lambda _url: "0.32.0")

    return show


def by_cell(rows: Sequence[Any]) -> Answer:
    return {
        (row.batch_size_first, row.context): row.draft_length for row in rows if not row.between
    }


def of_cli(source: str | Path, *flags: str) -> Answer:
    done = CliRunner().invoke(main, ["recommend", str(source), "--json", *flags])
    assert done.exit_code == 0, done.output
    return {
        (row["batch_size_first"], row["context"]): row["draft_length"]
        for row in json.loads(done.stdout)["rows"]
        if not row["between"]
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
    assert len(different) > 5, "the choice depends on the cell"


def costs() -> Iterator[tuple[str, dict[str, float], DraftCost]]:
    yield "ngram", {}, DraftCost()
    yield "ngram_gpu", {"b8": 0.001}, DraftCost()
    told = {"b1": 1e-4, "b8": 2e-4, "b32": 9e-4}
    by_batch = ((1, 1e-4), (8, 2e-4), (32, 9e-4))
    yield "eagle3", told, DraftCost(seconds_per_token=2e-4, by_batch=by_batch)
    yield "mtp", {"b1": 0.0, "b8": 5e-5}, DraftCost(seconds_per_token=5e-5)
    yield "mtp", {"b8": 0.0}, DraftCost()


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
    [("eagle", {}), ("mtp", {"b8": -1.0}), ("medusa", {"b8": 1e-4})],
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
    """No source makes up a number for it; a server says that it does not fit, by no row at all."""
    gone = (32, 16384)

    def without(rows: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(row for row in rows if (row.batch_size, row.context) != gone)

    partly = replace(
        profile, curves=without(profile.curves), boundaries=without(profile.boundaries)
    )
    server = Server(tmp_path, partly)
    text = server(16384, 0.8)
    at_url(text)
    left_out = replace(partly, run=replace(partly.run, skipped_cells={"B=32 L=16384": "memory"}))
    served = replace(left_out, probe=replace(left_out.probe, wanted_samples=0))
    served_length = recommend(partly, 0.8).schedule.length_of(32)
    for source, rows in ((partly, [("inferred", served_length)]), (served, []), (URL, [])):
        assert [
            (row.basis, row.draft_length)
            for row in recommend(source, 0.8).rows
            if (row.batch_size_first, row.context) == gone
        ] == rows
    shown = render(partly).split('aria-label="Draft lengths"', 1)[1].split("</table>", 1)[0]
    row_text = shown.split('<th scope="row">32</th><td>16384</td>', 1)[1].split("</tr>", 1)[0]
    assert all(int(k) > 0 for k in re.findall(r"K = (\d+)", row_text))
    assert row_text.count("inferred") == row_text.count("K = ") > 0


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
                if not row.between
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


SIZES, CONTEXTS, REAL = (1, 2, 4, 8, 16, 32), (256, 1024, 4096), (7, 3571)


def surface_row(batch_size: int, context: int, positions: int) -> CurvePoint:
    """A point of a smooth surface. Few shapes were measured, large batches are predicted."""
    tokens = batch_size * positions
    extra = 1.0 + (tokens / 40.0) ** 1.5
    ratio = (extra + context / 900.0) / (1.0 + (batch_size / 40.0) ** 1.5 + context / 900.0)
    basis = Basis.PREDICTED if batch_size > 8 else Basis.INFERRED
    if (batch_size, context, positions) in {(8, 1024, 4), (8, 1024, 8), (1, 256, 16)}:
        basis = Basis.MEASURED
    wide = {Basis.MEASURED: 1.01, Basis.INFERRED: 1.03, Basis.PREDICTED: 1.1}[basis]
    ratio, wide = (1.0, 1.0) if positions == 1 else (ratio, wide)
    seconds = 1e-3 * (1.0 + batch_size * context / 1e5)
    return CurvePoint(
        Module.MODEL, batch_size, context, positions, int(basis == Basis.MEASURED),
        seconds * ratio, ratio, ratio / wide, ratio * wide,
        "none" if tokens > 256 else "full", seconds * ratio / wide, seconds * ratio * wide, basis,
    )  # fmt: skip


def surface_rows(sizes: Sequence[int], contexts: Sequence[int]) -> tuple[CurvePoint, ...]:
    grid = (1, 2, 3, 4, 6, 8, 12, 16)
    return tuple(surface_row(b, c, n) for c in contexts for b in sizes for n in grid)


@pytest.fixture
def surface_profile(dense_profile: Profile) -> Profile:
    return replace(
        dense_profile,
        curves=surface_rows(SIZES, CONTEXTS),
        boundaries=(Boundary(Module.MODEL, 8, 1024, 0.1, 3, 3, 3, False, 3),),
        predictions=(),
        layer_times=(),
    )


def of_live(text: str, name: str) -> dict[str, str]:
    """Value and basis of a metric without labels of its own."""
    found = dict(re.findall(rf"^{name}(|_basis){{(?:[^}}]*)}} (\S+)$", text, re.MULTILINE))
    (basis,) = re.findall(rf'^{name}_basis{{basis="(\w+)"[^}}]*}} 1.0$', text, re.MULTILINE)
    return {"draft_length": found[""], "basis": basis}


@pytest.mark.parametrize("acceptance", ACCEPTANCES)
def test_reported_and_live_answers_have_one_length_basis_and_interval_everywhere(
    acceptance: float,
    surface_profile: Profile,
    tmp_path: Path,
    at_url: Callable[[str], None],
) -> None:
    """Of one surface, whether a file, a URL, the metric or the report is asked."""
    path = tmp_path / "profile.json"
    save_profile(path, surface_profile)
    (tmp_path / "run").mkdir()
    server = Server(tmp_path / "run", surface_profile)
    wanted = recommend(surface_profile, acceptance).rows
    lengths = {
        (row.batch_size_first, row.context): row.draft_length for row in wanted if not row.between
    }
    assert sorted(lengths) == sorted(itertools.product(SIZES, CONTEXTS))
    assert of_report(surface_profile)[acceptance] == lengths
    server.live = LiveStep(*REAL, 1), surface_rows(sorted((*SIZES, REAL[0])), REAL[1:])
    at_url(text := server(REAL[1], acceptance))
    shown = []
    for source in (path, URL):
        done = CliRunner().invoke(
            main, ["recommend", str(source), "--json", "--acceptance", str(acceptance)]
        )
        assert done.exit_code == 0, done.output
        shown.append(json.loads(done.stdout))
    of_file, of_url = shown
    for name in ("draft_length", "basis", "gain", "gain_lower", "gain_upper", "step_ratio"):
        told = [getattr(row, name) for row in wanted]
        assert [row[name] for row in of_file["rows"]] == told
        assert [row[name] for row in of_url["rows"]] == told
    assert all(row["basis"] in {"measured", "inferred", "predicted"} for row in of_url["rows"])
    assert all(row["gain_lower"] <= row["gain"] <= row["gain_upper"] for row in of_url["rows"])
    assert of_url["schedule"] == of_file["schedule"]
    assert of_file["live"] == []
    # At the real batch size and context.
    (live,) = of_url["live"]
    (exact,) = recommend(sources.curves_of_rows(server.live[1][8 * 3 : 8 * 4]), acceptance).rows[
        -1:
    ]
    assert (live["batch_size_first"], live["context"]) == REAL
    told = of_live(text, "vllm_nfp_live_recommended_draft_length")
    assert float(told["draft_length"]) == live["draft_length"] == exact.draft_length
    assert told["basis"] == live["basis"] == exact.basis == "inferred"
    assert (live["gain"], live["gain_lower"]) == pytest.approx((exact.gain, exact.gain_lower))
    # A batch size has one K, wherever traffic is.
    table = {row.batch_size_first: row.draft_length for row in wanted if not row.between}
    assert of_metric(text, REAL[1]) == {(b, REAL[1]): table[b] for b in SIZES}
    server.live = LiveStep(7, 1024, 1), surface_rows((*SIZES, 7), (1024,))
    assert of_metric(server(1024, acceptance), 1024) == at(lengths, 1024)


@pytest.mark.parametrize("acceptance", [0.5, 0.7, 0.9])
def test_every_place_that_names_a_draft_length_names_one(
    acceptance: float,
    profile: Profile,
    server: Server,
    at_url: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """Issue 23: 15 in the report, 11 by recommend and 12 in its table; 7, 4+ and 4 on a server."""
    path = tmp_path / "profile.json"
    save_profile(path, profile)
    found = recommend(profile, acceptance)
    served = found.speculative_config()["num_speculative_tokens_per_batch_size"]

    def of_vllm(batch_size: int) -> int:
        return next((k for first, last, k in served if first <= batch_size <= last), served[-1][2])

    cells = cells_of(profile)
    one = {cell: of_vllm(cell[0]) for cell in cells}
    assert by_cell(found.rows) == one
    assert {cell: found.schedule.length_of(cell[0]) for cell in cells} == one
    assert of_report(profile)[acceptance] == one
    assert of_cli(path, "--acceptance", str(acceptance)) == one
    said = " ".join(
        CliRunner().invoke(main, ["recommend", str(path), "--acceptance", str(acceptance)]).output
        .split()
    )  # fmt: skip
    # The recorded models had eight layers, which is said first.
    assert said.partition(" are given. ")[2].startswith(f"Serve K={of_vllm(1)}")
    assert json.dumps(served) in said
    # A live server: the metrics, watch, the command's table, its live line and its verdict.
    b, context = 8, 1024
    rows = tuple(
        r for r in profile.curves if (r.module, r.batch_size, r.context) == ("model", b, context)
    )
    server.live = LiveStep(b, context, 1), rows
    at_url(text := server(context, acceptance))
    assert of_metric(text, context) == of_watch(text, context) == at(one, context)
    live = recommend(URL, acceptance)
    assert {cell: k for cell, k in by_cell(live.rows).items()} == one
    (line,) = live.live
    (engine,) = watch.read(text).engines
    assert engine.live is not None
    # The table has one length for all contexts; live traffic has that of its own.
    (row,) = (r for r in live.rows if (r.batch_size_first, r.context) == (b, context))
    alone = row.alone_draft_length
    here = one[b, context] if alone is None else alone
    assert line.draft_length == engine.live.draft_length == here
    assert live.verdict[0].startswith(f"K={line.draft_length} would give")
    # Draft control has measured another one there with real steps: all follow it.
    settled = here - 1
    server.settles(b, context, settled)
    at_url(text := server(context, acceptance))
    (line,) = recommend(URL, acceptance).live
    (engine,) = watch.read(text).engines
    assert engine.live is not None
    assert line.draft_length == engine.live.draft_length == settled
    assert line.basis == "measured"
    assert recommend(URL, acceptance).verdict[0].startswith(f"You run K={settled}; keep it")


def test_a_batch_size_of_traffic_makes_no_label(surface_profile: Profile, tmp_path: Path) -> None:
    """Or each batch size that was ever served would be a series."""
    server = Server(tmp_path, surface_profile)
    for batch_size in (7, 9, 11):
        server.live = LiveStep(batch_size, 999, 1), surface_rows((*SIZES, batch_size), (999,))
        text = server(999, 0.8)
        sizes = set(re.findall(r'draft_length[^{]*{[^}]*batch_size="(\d+)"', text))
        assert sizes == set(map(str, SIZES))
        assert 'context="999"' not in text


def test_a_disabled_probe_recommends_nothing_for_traffic_it_does_not_see(
    surface_profile: Profile, tmp_path: Path
) -> None:
    server = Server(tmp_path, surface_profile)
    server.live = LiveStep(7, 999, 1), surface_rows((*SIZES, 7), (999,))
    assert "vllm_nfp_live_recommended_draft_length{" in server(999, 0.8)
    server.state = State.DISABLED
    assert "vllm_nfp_live_recommended_draft_length{" not in server(999, 0.8)


def test_predictions_are_the_same_in_predict_recommend_profile_and_metrics(
    dense_profile: Profile, tmp_path: Path
) -> None:
    from benchmarks.serving.shapes import SHAPES

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
            assert row.basis == "predicted"
            if not row.between:
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
