"""The pure parts of the benchmark scripts: no server, no GPU."""

from __future__ import annotations

import itertools
import json
import math
import random
import socket
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

# The scripts are no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
pytest.importorskip("aiohttp")

from benchmarks.hosts import environment
from benchmarks.hosts.flag_text import split_flags
from benchmarks.overhead import overhead, overhead_summary, probe_account, soak
from benchmarks.serving import (
    load,
    load_result,
    paired,
    saturation,
    server,
    shapes,
    traffic,
    user_traffic,
)
from vllm_nfp.start import ports
from vllm_nfp.start import server as start_server
from vllm_nfp.start.process import ProcessError, vllm_environment
from vllm_nfp.start.server import running_server


def a_load(**changes: object) -> traffic.Load:
    values = {
        "url": "http://x",
        "model": "m",
        "vocab_size": 50,
        "concurrency": 2,
        "prompt_tokens": 20,
        "output_tokens": 8,
        "seconds": 1.0,
    }
    return traffic.Load(**{**values, **changes})


def bodies(sender: int, count: int, **changes: object) -> list[dict]:
    return [
        json.loads(body)
        for body in itertools.islice(traffic.request_bodies(a_load(**changes), sender), count)
    ]


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n"


def turns(variant: str, times_us: list[list[int]], tokens: list[float]) -> tuple[list, dict]:
    """Rounds of one variant at half load, and their inter-token times."""
    rows = [
        {"share": 0.5, "round": r, "variant": variant, "tokens_per_second": count}
        for r, count in enumerate(tokens)
    ]
    keys = [overhead_summary.Turn(0.5, r, variant).key for r in range(len(tokens))]
    arrays = [np.array(us, dtype=np.uint32) for us in times_us]
    return rows, dict(zip(keys, arrays, strict=True))


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_shape_is_a_readable_config(name: str, tmp_path: Path) -> None:
    folder = shapes.write_model(tmp_path / "model", name, layers=3)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


def test_published_layers_are_kept_unless_changed(tmp_path: Path) -> None:
    config = json.loads((shapes.write_model(tmp_path, "qwen3-8b") / "config.json").read_text())
    assert config["num_hidden_layers"] == shapes.layer_count("qwen3-8b") == 36


@pytest.mark.parametrize(("name", "layers"), [("gpt-9", None), ("tiny-moe", 0)])
def test_bad_shape_is_refused(name: str, layers: int | None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown shape|layers must be"):
        shapes.write_model(tmp_path, name, layers)


def test_prompts_have_the_asked_length_and_valid_ids() -> None:
    for body in bodies(0, 5):
        assert len(body["prompt"]) == 20
        assert all(2 <= token < 50 for token in body["prompt"])


def test_no_two_prompts_of_a_sender_share_their_head() -> None:
    heads = [tuple(body["prompt"][:2]) for body in bodies(0, 100)]
    assert len(set(heads)) == 100


def test_shortest_prompt() -> None:
    assert len(bodies(0, 1, prompt_tokens=2)[0]["prompt"]) == 2


def test_same_seed_gives_the_same_requests_and_senders_differ() -> None:
    assert bodies(0, 3) == bodies(0, 3)
    assert bodies(0, 1)[0]["prompt"][2:] != bodies(1, 1)[0]["prompt"][2:]
    assert bodies(0, 1) != bodies(0, 1, seed=1)


def test_only_the_first_request_is_cut_short() -> None:
    lengths = [body["max_tokens"] for body in bodies(0, 4)]
    assert 1 <= lengths[0] <= 8
    assert lengths[1:] == [8, 8, 8]


@pytest.mark.parametrize("changes", [{"concurrency": 0}, {"prompt_tokens": 1}, {"seconds": 0}])
def test_impossible_load_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"must be positive|needs 2 tokens"):
        a_load(**changes)


def test_events_are_read() -> None:
    assert load.tokens_so_far(event(usage={"completion_tokens": 3})) == 3
    assert load.tokens_so_far(b"data: [DONE]\n") is None
    assert load.tokens_so_far(b"\n") is None


@pytest.mark.parametrize("fields", [{"error": {"message": "no"}}, {"choices": []}])
def test_events_that_cannot_be_counted_are_errors(fields: dict) -> None:
    with pytest.raises(load.LoadError):
        load.tokens_so_far(event(**fields))


def test_only_what_lies_in_the_window_counts() -> None:
    early = load_result.Trace(0.0, [0.5, 1.5, 1.75], [1, 1, 2], ended=1.8)
    cut = load_result.Trace(1.25, [1.5, 2.5], [1, 1])
    result = load_result.measure([early, cut], load_result.Window(1.0, 2.0))
    assert (result.tokens, result.merged_events, result.requests_ended) == (4, 1, 1)
    assert result.itl_us.tolist() == [250_000]
    assert result.ttft_seconds == (0.25,)
    assert result.silent_seconds == 0.5
    assert result.summary()["tokens_per_second"] == 4.0


def test_empty_window_has_no_percentiles() -> None:
    summary = load_result.measure([load_result.Trace(0.0)], load_result.Window(1.0, 2.0)).summary()
    assert summary["tokens"] == 0
    assert summary["silent_seconds"] == 1.0
    assert summary["itl_p99_ms"] is None
    assert summary["ttft_p50_ms"] is None
    json.dumps(summary)


def test_plan_holds_each_variant_once_per_group_and_mixes_their_order() -> None:
    groups = list(overhead.plan((0.1, 0.9), rounds=20))
    assert len(groups) == 40
    assert all(
        {turn.variant for turn in group} == set(overhead_summary.VARIANTS) for group in groups
    )
    assert all(len({(turn.share, turn.round) for turn in group}) == 1 for group in groups)
    assert {group[0].variant for group in groups} == set(overhead_summary.VARIANTS)
    assert [group[0].share for group in groups[:4]] == [0.1, 0.9, 0.1, 0.9]


def test_equal_sides_have_the_ratio_one() -> None:
    ratio = paired.ratio_of_sums([2.0, 3.0, 4.0], [2.0, 3.0, 4.0])
    assert (ratio.ratio, ratio.lower, ratio.upper) == (1.0, 1.0, 1.0)


def test_interval_holds_the_ratio_and_cancels_drift() -> None:
    off = np.linspace(5.0, 9.0, 8)
    on = off * np.array([1.01, 1.02, 1.03, 1.02, 1.01, 1.02, 1.03, 1.02])
    ratio = paired.ratio_of_sums(list(off), list(on))
    assert 1.01 <= ratio.lower <= ratio.ratio <= ratio.upper <= 1.03


def test_quantiles_are_those_of_all_rounds_together() -> None:
    rng = np.random.default_rng(0)
    off = [rng.integers(5_000, 9_000, 3_000).astype(np.uint32) for _ in range(6)]
    on = [(values * 1.1).astype(np.uint32) for values in off]
    on[0] = np.concatenate([on[0], np.full(600, 50_000, dtype=np.uint32)])  # 3 % of all
    for share, expected in ((0.5, 1.1), (0.99, 5.6)):
        ratio = paired.ratio_of_quantiles(off, on, share)
        exact = np.quantile(np.concatenate(on), share) / np.quantile(np.concatenate(off), share)
        assert ratio.ratio == pytest.approx(exact, rel=0.002)
        assert ratio.ratio == pytest.approx(expected, rel=0.03)
        assert ratio.lower <= ratio.ratio <= ratio.upper
    # A round alone makes the tail: without it, drawn every third time, there is none.
    assert ratio.lower < 1.2


def test_only_rounds_with_a_baseline_are_compared() -> None:
    rows, times = turns("off", [[100, 200]] * 2, [10.0, 10.0])
    more, other = turns("active", [[100, 200]] * 3, [9.0, 9.0, 1.0])
    found = {c.figure: c for c in overhead_summary.compare(rows + more, times | other)}
    assert found["tokens/s"].ratio.ratio == pytest.approx(0.9)
    assert {c.rounds for c in found.values()} == {2}
    assert {c.variant for c in found.values()} == {"active"}
    assert found["p99 inter-token"].ratio.ratio == pytest.approx(1.0)


def test_arrivals_come_at_their_rate_and_alike_for_all() -> None:
    arrivals = traffic.Arrivals(a_load(seed=3), per_second=50.0)
    moments = arrivals.moments(100.0)
    assert moments == arrivals.moments(100.0)
    assert len(moments) == pytest.approx(5000, rel=0.05)
    assert np.std(np.diff(moments)) == pytest.approx(0.02, rel=0.1), "no Poisson process"
    assert moments[-1] < 100.0
    assert moments != traffic.Arrivals(a_load(seed=4), per_second=50.0).moments(100.0)


@pytest.mark.parametrize("text", ["qwen3-8b", "qwen3-8b:4", "qwen3-8b:x:1", "gpt-9:1:1"])
def test_a_bad_shape_argument_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"must be NAME:LAYERS:KV_GIB|unknown shape"):
        overhead.parse_shape(text)


def test_resident_memory_is_told_by_process() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; x = bytearray(64 << 20); print(1); time.sleep(60)"],
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        child.stdout.readline()
        found = probe_account.resident_mib(child.pid)
    finally:
        child.kill()
        child.wait()
    assert 64 < found["api"] < 200
    assert found["engine"] == 0.0


@pytest.mark.parametrize(("lag", "interval", "late"), [(0.5, 7, False), (400, 0.01, True)])
def test_a_late_client_is_noticed(lag: float, interval: float, late: bool) -> None:
    turn = {"itl_p50_ms": interval, "client_lag_p99_ms": lag}
    assert overhead_summary.client_was_late(turn) is late


def test_probe_counters_are_read_and_may_be_missing() -> None:
    text = (
        "# TYPE vllm_nfp_probes counter\n"
        'vllm_nfp_probes_total{outcome="measured"} 4\n'
        "# TYPE vllm_nfp_overhead_ratio gauge\n"
        "vllm_nfp_overhead_ratio 0.008\n"
        "# TYPE vllm_nfp_state gauge\n"
        'vllm_nfp_state{state="probing"} 1\n'
        'vllm_nfp_state{state="steady"} 0\n'
    )
    counters = probe_account.probe_counters(text)
    assert counters.overhead_ratio == 0.008
    assert counters.gpu_seconds_total is None
    assert counters.probes_total == {"measured": 4.0}
    assert counters.states == ("probing",)
    assert counters.memory_bytes == {}


def test_command_has_the_probe_only_if_settings_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_server.shutil, "which", lambda *_, **__: "/bin/vllm")
    plain = server.Spec(tmp_path, tmp_path / "log", 8000, ("--enforce-eager",))
    assert "--enforce-eager" in plain.command()
    assert not [part for part in plain.command() if part.startswith("--nfp")]
    probed = server.Spec(tmp_path, tmp_path / "log", 8000, (), {"seed": 1}, tmp_path / "out")
    command = probed.command()
    assert json.loads(command[command.index("--nfp-config") + 1]) == {"seed": 1}
    assert command[command.index("--nfp-output-dir") + 1] == str(tmp_path / "out")


def test_callers_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    found = vllm_environment({"VLLM_CACHE_ROOT": "/c"})
    assert found["HF_HUB_OFFLINE"] == "0"
    assert found["VLLM_CACHE_ROOT"] == "/c"
    assert found["VLLM_NO_USAGE_STATS"] == "1"


def test_ports_are_distinct() -> None:
    assert len(set(ports.free_ports(8))) == 8


def test_a_port_is_free_and_none_that_a_connection_may_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two test processes with the same seed choose others; one in use is passed over."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = set()
    for _ in range(20):
        random.seed(7)
        found.add(ports.free_port())
    assert len(found) > 10
    assert max(found) < min(ephemeral, 32768)
    with socket.create_server(("127.0.0.1", min(found))):
        monkeypatch.setattr(ports, "PORTS", range(min(found), min(found) + 1))
        monkeypatch.setattr(ports, "PORTS_TRIED", 1)
        with pytest.raises(OSError, match=r"1 ports between .* are in use"):
            ports.free_port()


def test_gpu_state_needs_all_its_fields() -> None:
    fields = ("name", "clocks_throttle_reasons.active")
    assert environment.parse_state("H100, 0x0\nH100, 0x1\n", fields) == {
        "name": "H100",
        "throttle_reasons": "0x0",
    }
    assert environment.parse_state("", fields) is None
    assert environment.parse_state("H100\n", fields) is None


def test_overhead_is_not_measured_of_a_disabled_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def text(state: str) -> str:
        return f'vllm_nfp_state{{model_name="m",engine="0",state="{state}"}} 1.0\n'

    monkeypatch.setattr(probe_account.fetching, "fetch", lambda _url: text("steady"))
    probe_account.require_probe("http://x")
    monkeypatch.setattr(probe_account.fetching, "fetch", lambda _url: text("disabled"))
    with pytest.raises(ProcessError, match="the probe of http://x is disabled"):
        probe_account.require_probe("http://x")


def test_the_overhead_benchmark_runs_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against servers that only stream: every figure is there, and nobody is left behind."""
    fake = Path(__file__).with_name("fake_server.py")
    monkeypatch.setattr(
        server.Spec,
        "command",
        lambda spec: [sys.executable, str(fake), str(spec.port), str(spec.probe is not None)],
    )
    monkeypatch.setattr(overhead, "ENDING_SECONDS", 1.0)
    monkeypatch.setattr(overhead, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(saturation, "SATURATION_SECONDS", 1.0)
    arguments = ["--shape", "tiny:2:0.1", "--prompt-tokens=8", "--output-tokens=8"]
    arguments += ["--saturating=4", "--rounds=2", "--seconds=0.4", "--warmup-seconds=0.1"]
    overhead.main.main(
        [*arguments, "--limit-seconds=120", f"--out={tmp_path}"], standalone_mode=False
    )
    result = json.loads((tmp_path / "overhead-tiny.json").read_text())
    assert result["complete"]
    found = result["saturation"]
    assert found["requests_per_second"] == pytest.approx(found["tokens_per_second"] / 8)
    assert found["requests_per_second"] > 0
    assert len(result["rounds"]) == 2 * 3 * 3
    assert {(c["share"], c["variant"]) for c in result["summary"]} == {
        (share, variant) for share in overhead.SHARES for variant in ("passive", "active")
    }
    assert {c["figure"] for c in result["summary"]} == {
        "tokens/s", "p50 inter-token", "p99 inter-token",
    }  # fmt: skip
    for c in result["summary"]:
        assert math.isfinite(c["ratio"]["ratio"]) and c["ratio"]["ratio"] > 0
        if c["figure"] == "tokens/s":  # how quick this machine is does not matter
            of, off = (
                sum(
                    turn["tokens_per_second"]
                    for turn in result["rounds"]
                    if (turn["share"], turn["variant"]) == (c["share"], variant)
                )
                for variant in (c["variant"], "off")
            )
            assert c["ratio"]["ratio"] == pytest.approx(of / off)
    for variant, figures in result["servers"].items():
        assert figures["start_seconds"] > 0
        assert figures["resident_mib"]["api"] > 10
        assert ("probe" in figures) == (variant != "off")
    assert result["servers"]["active"]["probe"]["memory_bytes"] == {"gpu": 1 << 20}
    with np.load(tmp_path / "overhead-tiny.npz") as kept:
        assert len(kept.files) == len(result["rounds"])
    assert "p99 inter-token" in capsys.readouterr().out


def test_user_traffic_reports_each_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server that only streams: what the probe reports at the end of each phase."""
    monkeypatch.setattr(user_traffic, "PUBLISH_SECONDS", 0.0)
    assert [(p.streams, p.prompt_tokens, p.seconds) for p in user_traffic.PHASES] == [
        (1, 800, 25.0), (8, 3500, 45.0), (32, 900, 45.0),
    ]  # fmt: skip
    fake = Path(__file__).with_name("fake_server.py")
    port = ports.free_port()
    command = [sys.executable, str(fake), str(port), "True"]
    out = tmp_path / "traffic.json"
    with running_server(command, tmp_path / "log", port) as target:
        user_traffic.main.main(
            [f"{target.url}/", "--scale=0.02", f"--out={out}"], standalone_mode=False
        )
    found = json.loads(out.read_text())
    assert found["model"] == "tiny"
    assert [phase["streams"] for phase in found["phases"]] == [1, 8, 32]
    for phase in found["phases"]:
        assert phase["pairs"] == 42
        assert phase["client"]["tokens_per_second"] > 0
        assert {"name": "vllm_nfp_startup_seconds", "labels": {}, "value": 1.5} in phase["samples"]


def test_a_soak_tells_what_grows_and_leaves_the_settling_out() -> None:
    def samples(mib_each: float, files_each: int) -> list[soak.Sample]:
        start = [soak.Sample(float(i), 100.0 * i, 10, 5, 2) for i in range(20)]
        rest = [
            soak.Sample(20.0 + i, 2000.0 + mib_each * i, 10 + files_each * i, 5, 2)
            for i in range(60)
        ]
        return start + rest

    assert soak.grown(samples(0.1, 0)) == []
    assert soak.grown(samples(2.0, 1)) == [
        "resident_mib grew by 90, more than 48",
        "files grew by 45, more than 8",
    ]
    with pytest.raises(ValueError, match="3 samples are too few"):
        soak.grown(samples(0.0, 0)[:3])


def test_a_look_at_this_process_sees_its_files_and_threads() -> None:
    # In a group of its own: other tests, and what they start, share this process's.
    program = "kept = b'x' * (16 << 20); print(flush=True)"
    program += "; input(); opened = open('/dev/null'), open('/dev/zero')"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{program}; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    before = soak.sample(child.pid, 0.0)
    child.stdin.write(b"\n")
    child.stdin.flush()
    child.stdout.readline()
    after = soak.sample(child.pid, 0.0)
    child.communicate(b"\n", timeout=60)
    assert before.processes == after.processes == 1
    assert before.threads >= 1
    assert before.resident_mib > 10
    assert list(before.by_process.values()) == [before.resident_mib]
    assert "python" in next(iter(before.by_process))
    assert 1 < before.heap_mib < before.resident_mib
    assert after.files == before.files + 2


def test_the_record_names_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record without it is no evidence; a host without git is told it."""
    monkeypatch.delenv(environment.COMMIT_VARIABLE, raising=False)
    answers = {"rev-parse": "0a1b2c", "status": ""}
    monkeypatch.setattr(environment, "_git", lambda _, verb, *__: answers[verb])
    assert environment.commit() == "0a1b2c"
    answers["status"] = " M vllm_nfp/config.py"
    assert environment.commit() == "0a1b2c-dirty"
    assert environment.record()["commit"] == "0a1b2c-dirty"
    monkeypatch.setenv(environment.COMMIT_VARIABLE, "3d4e5f")
    assert environment.commit() == "3d4e5f", "a copy's own git knows nothing of what was copied"
    monkeypatch.delenv(environment.COMMIT_VARIABLE)
    monkeypatch.setattr(environment, "_git", lambda *_: None)
    assert environment.commit() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--a 1 --b='x y'", ["--a", "1", "--b=x y"]),
        ('--c {"m":"n", "k": [1, {"l": 2}]} --d', ["--c", '{"m":"n", "k": [1, {"l": 2}]}', "--d"]),
        ("--c '{\"m\": 1}' --d [1,2]", ["--c", '{"m": 1}', "--d", "[1,2]"]),
        ("", []),
    ],
)
def test_json_in_flags_keeps_its_quotes(text: str, words: list[str]) -> None:
    assert split_flags(text) == words


@pytest.mark.parametrize("text", ['--c {"m": ', "--c 'x"])
def test_flags_that_do_not_end_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="cannot be read"):
        split_flags(text)
