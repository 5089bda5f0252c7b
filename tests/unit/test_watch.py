from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from vllm_nfp import watch
from vllm_nfp.cli import main
from vllm_nfp.cli import watch as command
from vllm_nfp.cli.nfp_filter import Filter
from vllm_nfp.cli.watch_view import render
from vllm_nfp.types import Basis, Boundary, LiveStep, State

sys.path.insert(0, str(Path(__file__).parents[1] / "dashboards"))
from made_surface import CONTEXTS, made_snapshot
from recorded import Recorded, recorded_snapshot, serving


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(recorded_snapshot("dense", tmp_path), tmp_path)


@pytest.fixture
def url(recorded: Recorded) -> Iterator[str]:
    with serving(recorded) as address:
        yield address


def shown(renderable: Any, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["watch", *arguments], env={"COLUMNS": "120"})


def test_one_look_shows_nfp_batch_drafts_overhead_and_state(url: str) -> None:
    done = invoke(url, "--once")
    assert done.exit_code == 0, done.output
    assert "model-dense  engine 0  steady" in done.output
    assert "overhead 46.33% of 50.00% allowed" in done.output
    assert "1892 measured" in done.output
    # 16 free positions at B=8, L=4096, as docs/measured.md tables them: (16 - 4) x 6 more tokens.
    step = "last step: batch 6, context 4000, 4 positions per sequence"
    assert f"{step}; 72 more tokens are free within 10%" in done.output
    assert "speculation: K=3 runs" in done.output
    assert "60% of drafted tokens accepted" in " ".join(done.output.split())
    attention = done.output.split("attention", 1)[1].splitlines()
    one = next(line for line in attention if line.split()[:1] == ["1"])
    assert one.split()[:4] == ["1", "12", "[8,", "16]"]
    assert "L=16384" in done.output
    assert "64+" in done.output
    assert "rows without measurements: predicted from model and GPU" in done.output
    marks = "12 measured; ~12 inferred from other measurements; 12? predicted; + this or more"
    assert f"{marks}; > traffic" in done.output


def test_another_epsilon_can_be_shown_and_an_unmeasured_one_is_refused(url: str) -> None:
    done = invoke(url, "--once", "--epsilon", "0.2")
    assert "within 20%" in done.output
    done = invoke(url, "--once", "--epsilon", "0.3")
    assert done.exit_code == 2
    assert "--epsilon 0.3 is not measured by this server: give one of 0.05, 0.1, 0.2" in done.stderr


def end_after_two_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = iter(range(2))

    def sleep(_: float) -> None:
        if next(pauses, None) is None:
            raise KeyboardInterrupt

    looks = command._looks
    monkeypatch.setattr(command, "_looks", lambda *arguments: looks(*arguments, sleep=sleep))


def test_a_pipe_gets_one_view_below_the_other(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end_after_two_pauses(monkeypatch)
    done = invoke(url)
    assert done.exit_code == 0
    assert done.output.count("model-dense  engine 0") == 3
    # 30 drafted tokens of 10 drafts at each scrape: the same since the start and since the last.
    assert done.output.count("speculation: K=3 runs") == 3


def test_json_is_one_line_for_each_look(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end_after_two_pauses(monkeypatch)
    done = invoke(url, "--json", "--interval", "0.2")
    assert done.exit_code == 0, "Ctrl-C is the way to end it"
    lines = [json.loads(line) for line in done.output.splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert set(line) == {"schema", "time", "url", "problem", "engines", "rows"}
    engine = lines[-1]["engines"][0]
    assert lines[-1]["problem"] is None
    assert engine["state"] == "steady"
    assert engine["live"]["cell"] == {"batch_size": 8, "context": 4096}
    assert engine["live"]["free_tokens"]["0.1"] == 72
    assert engine["drafting"] == {"draft_length": 3.0, "acceptance": 0.6, "drafts": 10.0}
    assert len(lines[-1]["rows"]) == 81


def test_a_restart_is_survived(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(recorded) as url:
        port = int(url.rsplit(":", 1)[1])
        looks = command._looks(url, command._look(url, None), 0, sleep=lambda _: None)
        assert next(looks).reading is not None
    gone = next(looks)
    assert gone.reading is None
    assert gone.before is not None
    assert "cannot be read" in gone.problem
    text = shown(render(gone.before, None, 0.1, gone.problem))
    assert "cannot be read" in text
    assert "the values above are old" in text
    assert "attention" in text, "the last values stay"
    assert command._as_json(url, gone, Filter())["problem"] == gone.problem
    with serving(recorded, port):
        back = next(looks)
    assert back.reading is not None
    assert back.problem == ""


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:1/metrics cannot be read"),
        ("localhost:8000", "'localhost:8000' is not a URL: give one like http://localhost:8000"),
    ],
)
def test_an_address_without_a_server_is_one_sentence(address: str, sentence: str) -> None:
    done = invoke(address)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_server_without_the_probe_is_named(
    recorded: Recorded, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "text", lambda: b"up 1.0\n")
    done = invoke(url)
    assert done.exit_code == 2
    assert "the server has no NFP probe: start it with --nfp-probe" in done.stderr


def test_a_failing_server_is_one_sentence(recorded: Recorded, url: str) -> None:
    recorded.failing = True
    done = invoke(url, "--once")
    assert done.exit_code == 2
    assert "HTTP Error 500" in done.stderr


def test_counters_give_what_was_added_and_all_after_a_restart() -> None:
    before, now = watch.Drafting(10, 30, 6), watch.Drafting(30, 70, 26)
    added = now.since(before)
    assert (added.draft_length, added.acceptance) == (2.0, 0.5)
    assert now.since(None) == now
    assert before.since(now) == before, "a restart"
    assert watch.Drafting(0, 0, 0).draft_length == 0.0


def test_the_tolerance_shown_first_is_the_usual_one() -> None:
    assert watch.choose_epsilon((0.05, 0.1, 0.2)) == 0.1
    assert watch.choose_epsilon((0.02, 0.3)) == 0.02
    assert watch.choose_epsilon(()) == 0.1


def test_what_is_missing_is_said(recorded: Recorded, tmp_path: Path) -> None:
    base = recorded.snapshot
    fresh = dataclasses.replace(base, state=State.WARMING, boundaries=(), curves=(), live=None)
    text = shown(render(_reading(fresh), None, 0.1))
    assert "No answer yet" in text
    assert "no decode step yet" in text
    beyond = dataclasses.replace(base, live=LiveStep(64, 100, 1), live_boundaries=())
    text = shown(render(_reading(beyond), None, 0.1))
    assert "last step: batch 64, context 100, 1 position per sequence\n" in text
    assert ">" not in text, "no row holds the traffic"
    off = dataclasses.replace(base, state=State.DISABLED)
    assert "disabled" in shown(render(_reading(off), None, 0.1))


def _reading(snapshot: Any) -> watch.Reading:
    from prometheus_client import CollectorRegistry, generate_latest

    from vllm_nfp.metrics.families import families_of

    class Fixed:
        def collect(self) -> Any:
            return families_of([snapshot])

    registry = CollectorRegistry()
    registry.register(Fixed())  # type: ignore[arg-type]
    return watch.read(generate_latest(registry).decode())


def test_two_engines_are_shown_apart(recorded: Recorded) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from vllm_nfp.metrics.families import families_of

    row = Boundary("model", 8, 4096, 0.1, 3, 2, 3, False, 3)
    second = dataclasses.replace(
        recorded.snapshot,
        engine="1",
        boundaries=(row,),
        live=LiveStep(2, 2, 5),
        live_boundaries=(dataclasses.replace(row, batch_size=2, context=2),),
    )

    class Both:
        def collect(self) -> Any:
            return families_of([recorded.snapshot, second])

    registry = CollectorRegistry()
    registry.register(Both())  # type: ignore[arg-type]
    text = shown(render(watch.read(generate_latest(registry).decode()), None, 0.1))
    first, other = text.split("engine 1")
    assert "attention" in first
    assert "attention" not in other
    assert "5 positions per sequence; no more tokens are free within 10%" in other
    assert "> 3 [2, 3]" in other


def test_each_number_says_its_basis_without_colours(tmp_path: Path) -> None:
    """And what does not depend on the context stands once for each batch size."""
    made = made_snapshot()
    text = shown(render(_reading(made), None, 0.1), 100)
    assert max(map(len, text.splitlines())) <= 100
    rows = {
        line.split()[0]: line for line in text.split("attention")[0].splitlines() if line.split()
    }
    wanted = {(row.batch_size, row.context): row for row in made.boundaries
              if (row.module, row.epsilon) == ("model", 0.1)}  # fmt: skip
    assert {row.basis for row in wanted.values()} == set(Basis)
    first = re.findall(r"(>?) *(~?)(\d+)(\+?)(\??) *\[(\d+), (\d+)\]", rows["8"])
    assert len(first) == 4 + 1, "four contexts, and the dense FFN once"
    for (here, inferred, number, more, predicted, low, high), context in zip(
        first, CONTEXTS, strict=False
    ):
        row = wanted[8, context]
        assert (int(number), int(low), int(high)) == (row.positions, row.lower, row.upper)
        assert bool(inferred) == (row.basis is Basis.INFERRED)
        assert bool(predicted) == (row.basis is Basis.PREDICTED)
        assert bool(more) == row.at_limit
        assert bool(here) == (context == 4096), "batch 6 at 4000 tokens: the row that holds it"


def test_the_prior_and_jumps_are_told(recorded: Recorded) -> None:
    rough = dataclasses.replace(
        recorded.snapshot, prior="generic", prior_reason="no constants for GPU X", jumps=2
    )
    text = shown(render(_reading(rough), None, 0.1))
    assert (
        "rows without measurements: a rough guess with wide intervals (no constants for GPU X)"
        in text
    )
    assert "2 jumps: new measurements contradicted old ones" in text
    assert "jumps" not in shown(render(_reading(recorded.snapshot), None, 0.1))
    once = dataclasses.replace(rough, jumps=1)
    assert "1 jump: new measurements" in shown(render(_reading(once), None, 0.1))


def test_a_file_is_no_server(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.touch()
    done = CliRunner().invoke(main, ["table", str(path)])
    assert done.exit_code == 2
    assert "is a file, and table reads a running server: give its URL." in done.stderr


@pytest.mark.parametrize("command", [["watch", "--once"], ["table"]])
def test_batch_sizes_and_contexts_can_be_chosen(url: str, command: list[str]) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, [*command, url, *arguments], env={"COLUMNS": "120"})

    rows = json.loads(run("--batch-sizes", "8", "--contexts", "1024,4096", "--json").stdout)["rows"]
    assert {(row["batch_size"], row["context"]) for row in rows} == {(8, 1024), (8, 4096)}
    assert {row["basis"] for row in rows} == {"measured", "inferred"}
    text = run("--contexts", "1024").output
    assert "1024" in text
    assert "16384" not in text
    done = run("--batch-sizes", "7")
    assert done.exit_code == 2
    assert "--batch-sizes 7 is not reported by this server: give one of 1, 8, 32" in done.stderr
    assert not done.stdout, "nothing before the refusal"


def test_the_title_of_a_narrow_table_stands_on_one_line(url: str) -> None:
    done = CliRunner().invoke(
        main, ["table", url, "--epsilon", "0.1", "--batch-sizes", "8", "--contexts", "1024"]
    )
    assert "Free positions per sequence (NFP) [95 % interval]\n" in done.stdout


def test_the_answer_of_live_traffic_says_its_basis_and_draft_length(tmp_path: Path) -> None:
    """Of the real batch size and context: the weaker of the last free position and the next."""
    live = {n: Basis.MEASURED if n < 12 else Basis.INFERRED for n in (1, 2, 4, 8, 12, 16)}
    shape = watch.Live(6, 4000, 1, (8, 4096), {0.05: 18, 0.1: 42, 0.2: 90}, live, 3)
    assert shape.basis(0.05) is Basis.MEASURED, "4 are free, 8 are not"
    assert shape.basis(0.1) is Basis.INFERRED, "8 are free, 12 are not"
    assert dataclasses.replace(shape, bases={}).basis(0.1) is None, "an older server"
    made = made_snapshot()
    reading = _reading(made)
    (engine,) = reading.engines
    assert engine.live is not None
    assert engine.live.bases == {row.positions: row.basis for row in made.live_curves[1:]}
    text = shown(render(reading, None, 0.1))
    assert (
        "context 4000, 1 position per sequence; 42 more tokens are free within 10% (measured)"
        in text
    )
    one = dataclasses.replace(shape, free_tokens={0.1: 1})
    text = shown(
        render(watch.Reading(reading.scrape, (dataclasses.replace(engine, live=one),)), None, 0.1)
    )
    assert "; 1 more token is free within 10%" in text
    drafting = dataclasses.replace(engine, live=shape, drafting=watch.Drafting(10, 30, 18))
    view = render(watch.Reading(reading.scrape, (drafting,)), None, 0.1)
    assert "K=3 runs, K=3 recommended; 60% of drafted tokens accepted" in shown(view)
