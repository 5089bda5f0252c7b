"""The benchmark of adaptive verification: recorded drafts in the place of a model's own."""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))
pytest.importorskip("aiohttp")
from benchmarks.serving import server, shapes
from benchmarks.serving.load import LoadError
from benchmarks.serving.load_result import Trace
from benchmarks.serving.traces import AnswerTrace, write_traces
from benchmarks.verification import compare as verification_compare
from benchmarks.verification import load as verification_load
from benchmarks.verification import plan as verification_plan
from benchmarks.verification import servers as verification_servers
from benchmarks.verification import table as verification_table
from benchmarks.verification.load import Point, speed
from benchmarks.verification.replay import Replay, install, own_costs
from benchmarks.verification.streams import CHUNK, FIRST_TOKEN, Streams, make_streams, prompt_of
from vllm_nfp.start.ports import free_port

TOLD = {
    "measured_costs": 0.0, "reason": "few pairs", "step_seconds": {"real": 0.02, "vllm": 0.03},
    "totals": {
        "vllm_nfp_verification_steps_total:vllm": 7.0,
        "vllm_nfp_verification_steps_total:measured": 5.0,
    },
}  # fmt: skip
"""What the fake server's metrics say."""
RECORDED = [
    AnswerTrace("chat", np.full((75, 3), 1.0, np.float32), np.full(75, 1)),
    AnswerTrace("code", np.full((32, 3), 2.0, np.float32), np.full(32, 2)),
    AnswerTrace("code", np.full((10, 3), 9.0, np.float32), np.full(10, 3)),
]


def test_streams_change_their_task_and_are_the_same_each_time() -> None:
    streams = make_streams(RECORDED, streams=6, places=4 * CHUNK, vocabulary=100)
    again = make_streams(RECORDED, streams=6, places=4 * CHUNK, vocabulary=100)
    assert (streams.tokens == again.tokens).all()
    assert (streams.accepted == again.accepted).all()
    chunks = streams.accepted.reshape(6, 4, CHUNK)
    assert (chunks == chunks[..., :1]).all(), "a chunk is one task's"
    assert (chunks[:, 1:, 0] != chunks[:, :-1, 0]).all()
    assert set(chunks[:, 0, 0]) == {1, 2}, "streams begin with different tasks"
    assert (streams.log_odds[..., 0] == streams.accepted).all(), "rows stay together"
    assert streams.tokens.min() >= FIRST_TOKEN
    with pytest.raises(ValueError, match="no recorded answer of code has 32 positions"):
        make_streams(RECORDED[2:], 1, 10, 100)


def test_a_short_prompt_begins_the_long_one_of_its_stream() -> None:
    assert prompt_of(3, 64, 1000) == prompt_of(3, 8192, 1000)[:64]
    assert prompt_of(3, 64, 1000)[0] == FIRST_TOKEN + 3
    assert prompt_of(3, 64, 1000)[1:] != prompt_of(4, 64, 1000)[1:]


STREAMS = Streams(
    log_odds=np.arange(24, dtype=np.float32).reshape(2, 4, 3) / 8,
    accepted=np.array([[2, 0, 1, 3], [3, 3, 1, 0]]),
    tokens=np.array([[10, 11, 12, 13], [20, 21, 22, 23]]),
)


class Runner:
    """A V2 runner of two slots: the request in slot 1 meets stream 0, that in slot 0 stream 1."""

    def __init__(self, answers: list[int], adaptive: bool = True) -> None:
        def held(values: Any) -> SimpleNamespace:
            return SimpleNamespace(gpu=torch.tensor(values, dtype=torch.int32))

        self.req_states = SimpleNamespace(
            all_token_ids=held([[FIRST_TOKEN + 1, 5], [FIRST_TOKEN, 5]]),
            total_len=held([2 + n for n in answers]),
            prompt_len=held([2, 2]),
        )
        self.output: Any = None
        self.recorded: Any = None
        self.speculator = SimpleNamespace(propose=lambda *_, **__: torch.full((2, 3), -5))
        self.estimator = self.speculator.acceptance_estimator = SimpleNamespace(
            slope=torch.tensor([0.5]), intercepts=torch.tensor([0.0, -1.0, -2.0]),
            features=torch.zeros(2, 3), predictions=torch.zeros(2, 3),
        )  # fmt: skip
        record = SimpleNamespace(record_confidences=self._record) if adaptive else None
        self.adaptive_verification: Any = record
        install(self, Replay(self.req_states, STREAMS, torch.device("cpu")))

    def sample(self, hidden_states: Any, batch: Any, grammar: Any) -> Any:
        return self.output, self.output.num_sampled, self.output.num_rejected

    def _record(self, confidences: torch.Tensor, batch: Any) -> None:
        self.recorded = confidences.clone()

    def step(self, ends: list[int], drafts: int, sampled: list[int]) -> Any:
        width = 4 if drafts else 1
        self.output = SimpleNamespace(
            sampled_token_ids=torch.zeros(2, width, dtype=torch.int64),
            num_sampled=torch.tensor(sampled, dtype=torch.int32),
            num_rejected=torch.tensor([9, 9], dtype=torch.int32),
        )
        batch = SimpleNamespace(
            idx_mapping=torch.tensor([1, 0], dtype=torch.int32), num_draft_tokens=drafts,
            cu_num_logits=torch.tensor(ends, dtype=torch.int32),
        )  # fmt: skip
        self.sample(None, batch, None)
        return batch


def test_as_many_drafts_are_accepted_as_were_recorded() -> None:
    runner = Runner([2, 1])  # batch: stream 0 with one token of its answer, stream 1 with two
    runner.step([0, 4, 8], 6, [1, 1])
    assert runner.output.num_sampled.tolist() == [3, 4]
    assert runner.output.num_rejected.tolist() == [1, 0]
    assert runner.output.sampled_token_ids.tolist() == [[11, 12, 13, 10], [22, 23, 20, 21]]


def test_drafts_that_are_not_verified_are_not_accepted() -> None:
    runner = Runner([2, 1])
    runner.step([0, 2, 3], 1, [1, 1])  # one draft is verified for the first, none for the second
    assert runner.output.num_sampled.tolist() == [2, 1]
    assert runner.output.num_rejected.tolist() == [0, 0]


def test_a_request_that_reads_its_prompt_samples_nothing() -> None:
    runner = Runner([0, 1])
    runner.step([0, 4, 5], 3, [1, 0])
    assert runner.output.num_sampled.tolist() == [3, 0]
    assert runner.output.num_rejected.tolist() == [1, 0]


def test_a_step_without_drafts_keeps_its_numbers() -> None:
    runner = Runner([0, 3])
    runner.step([0, 1, 2], 0, [1, 1])
    assert runner.output.num_sampled.tolist() == [1, 1]
    assert runner.output.sampled_token_ids.tolist() == [[13], [20]]


def test_what_is_drafted_is_what_comes_next() -> None:
    runner = Runner([2, 1])
    batch = runner.step([0, 1, 2], 0, [1, 1])
    assert runner.speculator.propose(batch).tolist() == [[11, 12, 13], [22, 23, 20]]
    assert runner.speculator.propose(input_batch=batch, dummy_run=True).tolist() == [[-5] * 3] * 2


def test_the_estimator_reads_and_predicts_from_what_was_recorded() -> None:
    runner = Runner([2, 1])
    batch = runner.step([0, 1, 2], 0, [1, 1])
    runner.adaptive_verification.record_confidences(torch.zeros(3, 3), batch)
    features = torch.from_numpy(STREAMS.log_odds)[[0, 1], [0, 1]]  # of the batch's order
    assert torch.equal(runner.estimator.features, features.flip(0)), "by slot"
    predicted = torch.sigmoid(0.5 * features + torch.tensor([0.0, -1.0, -2.0]))
    assert torch.allclose(runner.recorded[:2], predicted)
    assert torch.allclose(runner.estimator.predictions, predicted.flip(0))
    assert runner.recorded[2].tolist() == [0.0] * 3, "beyond the batch nothing is written"


def test_a_server_that_verifies_all_has_no_confidences_to_replace() -> None:
    Runner([1, 1], adaptive=False).step([0, 4, 8], 6, [1, 1])


def arrivals(*events: tuple[float, int], ended: float | None = None) -> Trace:
    return Trace(0.0, [t for t, _ in events], [n for _, n in events], ended)


def test_speed_counts_what_lies_between_two_places() -> None:
    one = arrivals((1.0, 1), (2.0, 3), (3.0, 4), (4.0, 4), (5.0, 4))  # 4 tokens, then 12
    two = arrivals((1.0, 2), (2.5, 2), (3.5, 4), (4.5, 4))
    found = speed([one, two], begin=4, end=10, seconds=7.0)
    # 8 tokens in 2 s; 8 tokens in 2 s (of 4 to 12, from 2.5 to 4.5).
    assert found.tokens_per_second == pytest.approx(8.0)
    assert found.whole
    assert not speed([one, arrivals((2.1, 4), (4.0, 9))], 4, 10, 7.0).whole
    early = arrivals((1.0, 4), (2.0, 9), ended=3.5)
    assert not speed([one, early], 4, 10, 7.0).whole, "one ended before the other was measured"


def row(contender: str, speed_: float, number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "contender": contender, "pass": number, "context": "1k", "requests": 4,
        "tokens_per_second": speed_, "whole": True, "counted": {}, **changes,
    }  # fmt: skip


def test_the_table_compares_with_the_best_fixed_length() -> None:
    fed = {verification_table.STEPS_MEASURED: 30.0, verification_table.STEPS_OWN: 10.0}
    rows = [
        row("fixed-3", 200.0), row("fixed-7", 190.0), row("none", 150.0),
        row("vllm", 180.0), row("measured", 150.0), row("measured", 210.0, 1, counted=fed),
        row("fixed-3", 900.0, 1, whole=False), row("vllm", 90.0, requests=8),
    ]  # fmt: skip
    held = verification_table.cells(rows)["1k", 4]
    assert verification_table.best_fixed(held) == ("fixed-3", 200.0)
    assert held["measured"].n == 2
    assert held["measured"].spread == pytest.approx(30 / 180)
    text = verification_table.table({"shape": "tiny", "layers": 2, "rows": rows})
    assert (
        "| 1k | 4 | 150 |  | 200 |  | 190 | 180 | 210 | 1.050 | 0.900 | 1.167 | 75% | 1-2 | 16.7% |"
        in text
    )
    assert "| 1k | 8 |  |  |  |  |  | 90 |  |  |  |  |  | 1 |  |" in text
    assert "measured: 1 of 1 loads within 2 % of the best fixed length; worst 1.050" in text
    assert "vllm: 0 of 1 loads within 2 %" in text


def test_every_contender_drafts_in_its_own_way() -> None:
    flags = {
        name: verification_plan.flags_of(name, "qwen3-8b", 24, Path("HEAD"))
        for name in verification_plan.CONTENDERS
    }
    config = {
        name: json.loads(of[of.index("--speculative-config") + 1])
        for name, of in flags.items()
        if "--speculative-config" in of
    }
    assert set(config) == {"fixed", "vllm", "measured"}
    assert config["vllm"] == config["measured"]
    assert config["vllm"]["enable_adaptive_verification"]
    table = config["fixed"]["num_speculative_tokens_per_batch_size"]
    assert table == [[1, 1, 1], [2, 2, 3], [3, 3, 5], [4, 128, 7]]
    assert set(flags["measured"]) - set(flags["vllm"]) == {
        "--nfp-probe",
        "--nfp-verification-costs",
    }
    kv = int(flags["none"][flags["none"].index("--kv-cache-memory-bytes") + 1])
    longest = max(sum(p.prompts) for p in verification_plan.points())
    assert kv > 2**30 * shapes.kv_gib("qwen3-8b", 25, longest)


def only_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have servers run that stream tokens and tell metrics, and load no model."""
    fake = Path(__file__).with_name("fake_server.py")
    monkeypatch.setattr(
        server.Spec,
        "command",
        lambda spec: [sys.executable, str(fake), str(spec.port), str("--nfp-probe" in spec.flags)],
    )


def test_the_comparison_runs_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against servers that only stream: every contender and length is there, and in the table."""
    only_stream(monkeypatch)
    told: list[tuple[str, ...]] = []

    class Remote:
        def __init__(self, url: str) -> None:
            pass

        def call(self, *asked: str) -> list[dict[str, Any]]:
            told.append(asked)
            return [{"adaptive": len(told) > 5}]

    monkeypatch.setattr(verification_compare, "Remote", Remote)
    monkeypatch.setattr(verification_compare, "WARM_UP", Point("warm-up", (8,), 2))
    monkeypatch.setattr(verification_compare, "OTHER_KINDS", (Point("warm-up", (8,) * 3, 2),))
    monkeypatch.setattr(verification_compare, "MARGIN", 1.0)
    monkeypatch.setattr(verification_compare, "points", lambda: [Point("1k", (8, 8), 16)])
    monkeypatch.setattr(verification_load, "BEGIN", 4)
    write_traces(tmp_path / "traces.npz", RECORDED, {"commit": "abc"})
    verification_compare.main.main(
        ["--shape=tiny", "--layers=2", f"--traces={tmp_path / 'traces.npz'}",
         "--within=60", "--passes=2", "--time-host", "--adaptive-drafts=4",
         "--contender=fixed", "--contender=measured", f"--out={tmp_path}"],
        standalone_mode=False,
    )  # fmt: skip
    held = json.loads((tmp_path / "verification-tiny.json").read_text())
    names = {r["contender"] for r in held["rows"]}
    assert names == {"fixed-1", "fixed-3", "fixed-5", "fixed-7", "measured"}
    assert all(r["tokens_per_second"] > 0 for r in held["rows"])
    assert len(held["rows"]) == 2 * len(names)
    assert held["traces"] == {"commit": "abc"}
    assert set(held["servers"]) == {"fixed", "measured"}
    assert str(tmp_path) not in json.dumps(held), "no paths of this machine"
    assert held["adaptive_drafts"] == 4
    assert '"num_speculative_tokens": 4' in str(held["servers"]["measured"]["flags"])
    assert '"num_speculative_tokens": 7' in str(held["servers"]["fixed"]["flags"])
    assert all("host" in row for row in held["rows"])
    names_of = [asked[0] for asked in told if asked[0] != "bench_draft_length"]
    assert names_of == (["bench_replay", "bench_time_host"] + ["bench_host_parts"] * 16) + (
        ["bench_replay", "bench_time_host"] + ["bench_host_parts"] * 4
    ), "before and after each load"
    lengths = [asked[1] for asked in told if asked[0] == "bench_draft_length"]
    assert lengths == ["1", "3", "5", "7"] * 2
    for found in held["rows"]:
        assert found["verification"] == (TOLD if found["contender"] == "measured" else {})
    kept = sorted(path.name for path in tmp_path.glob("*.prom.gz"))
    assert kept == [f"metrics-tiny-measured-{number}.prom.gz" for number in (0, 1)]
    lines = gzip.decompress((tmp_path / kept[0]).read_bytes()).decode().splitlines()
    assert len(lines) == 11 and all(line.startswith("vllm_nfp_") for line in lines)
    shown = capsys.readouterr().out
    assert "| 1k | 2 |" in shown and "measured: 2 passes" in shown


def test_an_adaptive_way_meets_all_kinds_of_steps_before_anything_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, met = [0.0], list[int]()
    seconds = {16: 9.0, 128: 2.5, 1: 1.5, 2: 1.0}

    def measured(
        url: str, model: str, vocabulary: int, point: Point, limit_seconds: float = 60.0
    ) -> None:
        met.append(point.requests)
        clock[0] += min(seconds[point.requests], limit_seconds)
        if seconds[point.requests] > limit_seconds:
            raise LoadError("too long")

    monkeypatch.setattr(verification_compare, "measure", measured)
    monkeypatch.setattr(verification_compare.time, "monotonic", lambda: clock[0])
    verification_compare.warm_up("http://x", "m", 100)
    assert met == [16, 128, 1, 2]
    clock[0], seconds[1] = 0.0, 99.0
    verification_compare.warm_up("http://x", "m", 100)
    assert met[4:] == [16, 128, 1], "the rest no longer fits"
    assert clock[0] == 9.0 + verification_compare.MOST_WARM_UP_SECONDS
    assert "warm-up with 1 requests: too long" in capsys.readouterr().out


def test_some_of_vllms_own_costs_are_kept() -> None:
    manager = SimpleNamespace(cost_tables=None)
    assert own_costs(manager) == {}
    manager.cost_tables = np.arange(3.0), np.arange(1025.0) / 4
    found = own_costs(manager)
    assert found["draft_ms"] == [(1, 1.0), (2, 2.0)]
    assert found["verify_ms"][-5:] == [(n, n / 4) for n in (513, 640, 768, 896, 1024)]


def test_a_length_beyond_one_that_lost_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Point("1k", (8,), 16), Point("8k", (8,), 16)
    speeds = {one: [100.0, 96.0, 94.0], two: [100.0, 120.0, 119.0, 90.0]}
    left = {point: iter(found) for point, found in speeds.items()}

    def measured(url: str, model: str, vocabulary: int, point: Point) -> verification_load.Speed:
        return verification_load.Speed(next(left[point]), 1.0, True)

    held: list[str] = []
    remote = SimpleNamespace(call=lambda *asked: held.append(asked[1]))
    monkeypatch.setattr(verification_compare, "Remote", lambda url: remote)
    monkeypatch.setattr(verification_load, "measure", measured)
    monkeypatch.setattr(verification_compare, "points", lambda: [one, two])
    settings = SimpleNamespace(shape="tiny", time_host=False, least_seconds=0.0)
    answers = SimpleNamespace(url="http://x", metrics=lambda: "")
    rows = [*verification_compare.one_pass("fixed", 0, answers, "m", settings)]  # type: ignore[arg-type]
    found = {p.context: [r["tokens_per_second"] for r in rows if r["context"] == p.context]
             for p in speeds}  # fmt: skip
    assert found == {point.context: of for point, of in speeds.items()}
    assert held == ["1", "3", "5", "7"]


def test_a_load_that_is_over_soon_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([(100.0, 1.0, True), (200.0, 1.0, False), (300.0, 1.0, True)])
    monkeypatch.setattr(
        verification_load, "measure", lambda *_: verification_load.Speed(*next(runs))
    )
    found = verification_load.measure_for(1.5, "u", "m", 8, Point("1k", (8,), 16))
    assert found == verification_load.Speed(150.0, 2.0, False)
    assert verification_load.measure_for(0.0, "u", "m", 8, Point("1k", (8,), 16)).seconds == 1.0


ENGINE = """
import runpy, sys, time
print("Initializing a V1 LLM engine", flush=True)
time.sleep(0.4)
print("weights", flush=True)
if "broken" in sys.argv: raise SystemExit("no memory")
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_a_later_pair_waits_before_it_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = str(Path(__file__).with_name("fake_server.py"))

    def command(spec: server.Spec) -> list[str]:
        run = "import sys; sys.argv = [sys.argv[1], *sys.argv[2:]]" + ENGINE
        run = run.replace("sys.argv[1], run_name", repr(fake) + ", run_name")
        return [sys.executable, "-c", run, "x", str(spec.port), "False", *spec.flags]

    monkeypatch.setattr(server.Spec, "command", command)
    flags = {"fixed": (), "vllm": ("broken",), "measured": (), "none": ()}
    specs = {
        name: server.Spec(Path("m"), tmp_path / f"{name}.log", free_port(), of)
        for name, of in flags.items()
    }
    told: list[str] = []

    def state(name: str) -> str:
        pid = servers._servers[name].child.pid
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    def weights(name: str) -> bool:
        return "weights" in (tmp_path / f"{name}.log").read_text()

    with verification_servers.Pairs(specs, told.append) as servers:
        assert servers.pairs == [["fixed", "vllm"], ["measured", "none"]]
        fixed, broken = servers.answering(servers.pairs[0], time.monotonic() + 30)
        assert fixed.server is not None and fixed.seconds > 0.4
        assert broken.server is None and "no memory" in broken.failed
        time.sleep(0.6)
        assert [state(name) for name in ("fixed", "measured", "none")] == ["T"] * 3
        assert not weights("measured") and not weights("none")
        for name in servers.pairs[0]:
            servers.end(name)
        later = servers.answering(servers.pairs[1], time.monotonic() + 30)
        assert [start.contender for start in later] == ["measured", "none"]
        assert all(start.server is not None for start in later)
        assert state("measured") == "T", "its idle probe must not run beside a load"
    assert len(told) == 3
