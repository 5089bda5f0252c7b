from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.samples import Sample

from vllm_nfp.cli import main
from vllm_nfp.metrics import hand_over
from vllm_nfp.metrics.collector import NfpCollector
from vllm_nfp.metrics.families import families_of
from vllm_nfp.metrics.families.recommendation import told_demand
from vllm_nfp.metrics.families.steps import free_tokens, live_cell, steps
from vllm_nfp.results import fetching, scrape
from vllm_nfp.results.snapshot import (
    MAX_FILE_BYTES,
    Snapshot,
    SnapshotError,
    engine_file,
    read_snapshot,
    write_snapshot,
)
from vllm_nfp.types import (
    Basis,
    Boundary,
    CurvePoint,
    LayerHistogram,
    LiveStep,
    Prediction,
    State,
    StepLatency,
)

FULL = Snapshot(
    model_name='a "model"\n',
    engine="0",
    state=State.STEADY,
    probes={"measured": 7, "refused": 1},
    probe_seconds=0.5,
    overhead_ratio=0.009,
    overhead_budget=0.01,
    boundaries=(
        Boundary("model", 8, 1024, 0.1, 4, 3, 5, False, 12, Basis.INFERRED),
        Boundary("attention", 8, 1024, 0.1, 16, 16, 16, True, 16),
    ),
    curves=(CurvePoint("model", 8, 1024, 4, 12, 0.0071, 1.06, 1.05, None, "full"),),
    predictions=(Prediction("model", 8, 1024, 0.1, 6, 38, "tile"),),
    layers=(LayerHistogram(3, "attention", (0.001, 0.01), (1, 4, 5), 0.02),),
    live=LiveStep(batch_size=6, context=900, positions=1),
    live_boundaries=(Boundary("model", 6, 900, 0.1, 5, 4, 6, False, 5, Basis.INFERRED),),
    prior="generic",
    prior_reason="the GPU\n'X' is unknown",
    jumps=2,
)


@pytest.fixture
def text(tmp_path: Path) -> str:
    write_snapshot(engine_file(str(tmp_path), "0"), FULL)
    registry = CollectorRegistry()
    registry.register(NfpCollector(str(tmp_path)))
    return generate_latest(registry).decode()


def test_a_snapshot_survives_its_file(tmp_path: Path) -> None:
    path = engine_file(str(tmp_path), "0")
    write_snapshot(path, FULL)
    assert read_snapshot(path) == FULL
    assert list(tmp_path.iterdir()) == [path], "a temporary file was left"


@pytest.mark.parametrize(
    "line",
    [
        'vllm_nfp_positions{batch_size="8",context="1024",engine="0",epsilon="0.1",'
        'model_name="a \\"model\\"\\n",module="model"} 4.0',
        "vllm_nfp_positions_lower{",
        "vllm_nfp_positions_upper{",
        "vllm_nfp_predicted_positions{",
        "vllm_nfp_idle_compute_positions{",
        "vllm_nfp_module_latency_seconds{",
        'vllm_nfp_layer_latency_seconds_bucket{engine="0",layer="3",le="0.01",'
        'model_name="a \\"model\\"\\n",module="attention"} 4.0',
        'vllm_nfp_probes_total{engine="0",model_name="a \\"model\\"\\n",outcome="measured"} 7.0',
        "vllm_nfp_probe_gpu_seconds_total{",
        "vllm_nfp_overhead_ratio{",
        'vllm_nfp_overhead_budget_ratio{engine="0",model_name="a \\"model\\"\\n"} 0.01',
        'vllm_nfp_live_cell_info{batch_size="8",context="1024",engine="0",'
        'model_name="a \\"model\\"\\n"} 1.0',
        'vllm_nfp_state{engine="0",model_name="a \\"model\\"\\n",state="steady"} 1.0',
        'vllm_nfp_state{engine="0",model_name="a \\"model\\"\\n",state="disabled"} 0.0',
        'vllm_nfp_free_tokens{engine="0",epsilon="0.1",model_name="a \\"model\\"\\n"} 24.0',
        'vllm_nfp_positions_basis{basis="inferred",batch_size="8",context="1024",engine="0",'
        'epsilon="0.1",model_name="a \\"model\\"\\n",module="model"} 1.0',
        'vllm_nfp_positions_basis{basis="measured",batch_size="8",context="1024",engine="0",'
        'epsilon="0.1",model_name="a \\"model\\"\\n",module="attention"} 1.0',
        'vllm_nfp_prior_info{engine="0",model_name="a \\"model\\"\\n",prior="generic",'
        "reason=\"the GPU 'X' is unknown\"} 1.0",
        'vllm_nfp_surface_jumps_total{engine="0",model_name="a \\"model\\"\\n"} 2.0',
    ],
)
def test_every_metric_of_the_contract_is_exported(text: str, line: str) -> None:
    assert line in text


def test_free_tokens_are_those_at_the_real_batch_size_and_context() -> None:
    assert free_tokens(FULL) == {0.1: 6 * (5 - 1)}, "not those of the row for 8 and 1024"
    assert free_tokens(replace(FULL, live=LiveStep(6, 900, 9))) == {0.1: 0}
    assert free_tokens(replace(FULL, live_boundaries=())) == {}
    assert free_tokens(replace(FULL, live=None)) == {}


def test_the_live_step_is_filed_under_the_smallest_row_that_holds_it() -> None:
    larger = Boundary("model", 32, 4096, 0.1, 2, 2, 2, False, 2)
    both = replace(FULL, boundaries=(larger, *FULL.boundaries))
    assert live_cell(both) == (8, 1024)
    assert live_cell(replace(both, live=LiveStep(9, 900, 1))) == (32, 4096)
    assert live_cell(replace(both, live=LiveStep(33, 900, 1))) is None
    assert live_cell(replace(both, live=None)) is None


def test_a_disabled_probe_shows_no_live_step() -> None:
    def samples(snapshot: Snapshot) -> list[str]:
        families = families_of([snapshot])
        return [sample.name for family in families for sample in family.samples]

    assert any(name.startswith("vllm_nfp_live") for name in samples(FULL))
    disabled = samples(replace(FULL, state=State.DISABLED, reason="a fault"))
    assert not [name for name in disabled if "_live" in name or "_free_tokens" in name]
    assert "vllm_nfp_positions" in disabled


GOOD_FILE = b'{"schema": 1, "model_name": "m", "engine": "1", "state": "steady"}'


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"[]", "expected 'object', got 'array'"),
        (b'{"schema": 99}', "is not a snapshot of schema 1"),
        (b'{"schema": 1}', "missing required field"),
        (GOOD_FILE.replace(b"steady", b"napping"), "must be one of warming"),
        (GOOD_FILE.replace(b'"m"', b"5"), "model_name: expected 'str'"),
        (GOOD_FILE.replace(b"}", b', "probes": {"measured": 1%s}}' % (b"0" * 400)), "expected"),
        (GOOD_FILE.replace(b"}", b', "jumps": -1}'), "jumps: expected 'int' >= 0"),
        (GOOD_FILE.replace(b"}", b', "prior": "my guess"}'), "the strange label 'my guess'"),
        (GOOD_FILE.replace(b"}", b', "curves": 1}'), "curves: expected 'array'"),
        (GOOD_FILE.replace(b"}", b', "curves": [{}]}'), "missing required field 'module'"),
        (GOOD_FILE.replace(b"}", b', "probes": []}'), "probes: expected 'object'"),
        (b'{"a":' * 50_000, "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
def test_a_hostile_file_is_ignored_and_named_once(
    content: bytes, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = engine_file(str(tmp_path), "1")
    path.write_bytes(GOOD_FILE)
    assert read_snapshot(path).engine == "1", "without the fault it is read"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=why):
        read_snapshot(path)
    write_snapshot(engine_file(str(tmp_path), "0"), FULL)
    collector = NfpCollector(str(tmp_path))
    with caplog.at_level(logging.ERROR, "vllm.nfp"):
        for _ in range(5):
            names = {metric.name for metric in collector.collect()}
    assert "vllm_nfp_positions" in names
    assert caplog.text.count("engine-1.json is ignored") == 1


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = engine_file(str(tmp_path), "0")
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(SnapshotError, match="is larger than"):
        read_snapshot(path)


@given(st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
))  # fmt: skip
def test_any_json_is_read_or_refused(value: object) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = engine_file(folder, "1")
        for name in ("curves", "model_name", "probes", "live"):
            path.write_text(json.dumps({**json.loads(GOOD_FILE), name: value}))
            try:
                found = read_snapshot(path)
            except SnapshotError:
                assert not fits(name, value), f"{name} may be {value!r}"
                continue
            assert fits(name, value), f"{name} may not be {value!r}"
            write_snapshot(path, found)
            assert read_snapshot(path) == found


def fits(name: str, value: object) -> bool:
    """Whether a field may hold such a value; none of those drawn has the fields of a row."""
    if name == "model_name":  # whoever shows it takes care of control characters
        return isinstance(value, str)
    if name == "live":
        return value is None
    return value == ([] if name == "curves" else {})


def test_an_engine_name_cannot_leave_the_folder() -> None:
    with pytest.raises(SnapshotError, match="is not a number"):
        engine_file("/tmp", "../../etc/passwd")


def test_a_fault_in_collecting_does_not_fail_the_scrape(
    tmp_path: Path, inject_fault: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    write_snapshot(engine_file(str(tmp_path), "0"), FULL)
    inject_fault("collect")
    with caplog.at_level(logging.ERROR, "vllm.nfp"):
        assert list(NfpCollector(str(tmp_path)).collect()) == []
    assert "could not be collected" in caplog.text


def test_a_scrape_is_read_back(text: str) -> None:
    found = scrape.parse(text)
    model = next(row for row in found.rows if row.module == "model")
    assert (model.positions, model.lower, model.upper, model.at_limit) == (4, 3, 5, False)
    assert (model.predicted, model.idle_compute) == (6, 38)
    assert model.basis is Basis.INFERRED
    assert found.statuses[0].state == "steady"
    status = found.statuses[0]
    assert status.probes == {"measured": 7, "refused": 1}
    assert (status.prior, status.jumps) == ("generic", 2)
    assert status.prior_reason == "the GPU 'X' is unknown"


def test_a_server_from_before_the_surface_is_read(text: str) -> None:
    new = ("vllm_nfp_positions_basis", "vllm_nfp_prior_info", "vllm_nfp_surface_jumps")
    old = "".join(line for line in text.splitlines(True) if not line.startswith(new))
    found = scrape.parse(old)
    assert {row.basis for row in found.rows} == {Basis.MEASURED}
    assert (found.statuses[0].prior, found.statuses[0].jumps) == ("", 0)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("", "has no NFP probe: start it with --nfp-probe"),
        ("# TYPE up gauge\nup 1\n", "has no NFP probe"),
        ('vllm_nfp_state{state="x" 1\n', "not in Prometheus' text format"),
        ("# TYPE up gauge\nup 1\nhello\n", r"text format \(a line is 'hello'\): is it a vLLM ser"),
    ],
)
def test_a_scrape_without_the_probe_says_what_to_do(broken: str, sentence: str) -> None:
    with pytest.raises(fetching.ScrapeError, match=sentence):
        scrape.parse(broken)


def table(monkeypatch: pytest.MonkeyPatch, text: str, *args: str) -> tuple[int, str]:
    monkeypatch.setattr(fetching, "fetch", lambda _url: text)
    result = CliRunner().invoke(main, ["table", "http://localhost:1", *args])
    return result.exit_code, result.output


def test_the_table_is_printed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = table(monkeypatch, text)
    assert code == 0
    shown = " ".join(output.split())
    assert "4 [3, 5]" in shown
    assert "16+ [16, 16]" in shown
    assert "+ this or more" in shown


def test_the_table_as_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = table(monkeypatch, text, "--json", "--epsilon", "0.1")
    assert code == 0
    values = json.loads(output)
    assert values["schema"] == 1
    assert [row["module"] for row in values["rows"]] == ["attention", "model"]


def test_an_epsilon_that_is_not_measured_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = table(monkeypatch, text, "--epsilon", "0.3")
    assert code == 2
    assert "--epsilon 0.3 is not measured by this server: give one of 0.1" in output


@pytest.mark.parametrize("url", ["localhost:8000", "http://127.0.0.1:1"])
def test_a_url_that_does_not_answer_is_refused_with_code_2(url: str) -> None:
    result = CliRunner().invoke(main, ["table", url])
    assert result.exit_code == 2
    assert url in result.output
    assert "Traceback" not in result.output


def model_curve(batch_size: int, context: int, *ratios: float) -> tuple[CurvePoint, ...]:
    counts = (1, 2, 4, 8)
    return tuple(
        CurvePoint("model", batch_size, context, n, 9, 0.01 * ratio, ratio, ratio, None, "full")
        for n, ratio in zip(counts, (1.0, *ratios), strict=True)
    )


DRAFTING = replace(
    FULL,
    curves=(
        *model_curve(1, 1024, 1.0, 1.0, 1.0),
        *model_curve(8, 1024, 1.0, 1.0, 9.0),
        *model_curve(8, 4096, 9.0, 9.0, 9.0),
        *FULL.curves[1:],
    ),
)


def count_drafts(registry: CollectorRegistry, engine: str, *accepted: float) -> None:
    of = {"model_name": FULL.model_name, "engine": engine}
    for name, value in (("drafts", 100), ("draft_tokens", 100 * len(accepted))):
        counter = Counter(f"vllm:spec_decode_num_{name}", "-", list(of), registry=registry)
        counter.labels(**of).inc(value)
    places = Counter(
        "vllm:spec_decode_num_accepted_tokens_per_pos", "-", [*of, "position"], registry=registry
    )
    for place, value in enumerate(accepted):
        places.labels(**of, position=str(place)).inc(value)


def recommended(registry: CollectorRegistry) -> dict[str, float]:
    return {
        sample.labels["batch_size"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "vllm_nfp_recommended_draft_length"
    }


def test_draft_lengths_for_a_given_acceptance(tmp_path: Path) -> None:
    write_snapshot(engine_file(str(tmp_path), "0"), DRAFTING)
    registry = CollectorRegistry()
    registry.register(NfpCollector(str(tmp_path), 0.9, registry))
    assert recommended(registry) == {"1": 7, "8": 0}, "drafts lose at B=8 and the long context"


def test_draft_lengths_for_the_acceptance_that_the_server_counts(tmp_path: Path) -> None:
    write_snapshot(engine_file(str(tmp_path), "0"), DRAFTING)
    registry = CollectorRegistry()
    registry.register(NfpCollector(str(tmp_path), None, registry))
    assert recommended(registry) == {}, "the server drafts nothing"
    count_drafts(registry, "0", 90, 81)
    assert recommended(registry) == {"1": 2, "8": 0}, "nothing is known of later drafts"
    other = CollectorRegistry()
    other.register(NfpCollector(str(tmp_path), None, other))
    count_drafts(other, "1", 90, 81)
    assert recommended(other) == {}, "another engine's drafts"
    rejecting = CollectorRegistry()
    rejecting.register(NfpCollector(str(tmp_path), None, rejecting))
    count_drafts(rejecting, "0", 0, 0)
    assert recommended(rejecting) == {"1": 0, "8": 0}


def test_counters_beside_the_collector_are_used_as_several_api_servers_need_it(
    tmp_path: Path,
) -> None:
    write_snapshot(engine_file(str(tmp_path), "0"), DRAFTING)
    counters = CollectorRegistry()
    count_drafts(counters, "0", 90, 81)
    found = [
        sample.value
        for metric in NfpCollector(str(tmp_path)).collect_beside(list(counters.collect()))
        for sample in metric.samples
        if sample.name == "vllm_nfp_recommended_draft_length"
    ]
    assert found == [2, 0]


def test_a_batch_size_has_one_draft_length_whatever_the_context_of_traffic(tmp_path: Path) -> None:
    def at(**changes: Any) -> dict[str, float]:
        write_snapshot(engine_file(str(tmp_path), "0"), replace(DRAFTING, **changes))
        registry = CollectorRegistry()
        registry.register(NfpCollector(str(tmp_path), 0.9, registry))
        return recommended(registry)

    assert at(live=None) == at(live=LiveStep(1, 1, 1)) == at(live=LiveStep(1, 1 << 20, 1))
    assert at(curves=()) == {}


def test_registering_reads_no_file_and_names_filter(tmp_path: Path) -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(NfpCollector(str(tmp_path / "missing"), None, registry))
    write_snapshot(engine_file(str(tmp_path), "0"), DRAFTING)
    filtered = CollectorRegistry()
    filtered.register(NfpCollector(str(tmp_path), 0.9, filtered))
    only = filtered.restricted_registry(["vllm_nfp_overhead_ratio"])
    assert {sample.name for m in only.collect() for sample in m.samples} == {
        "vllm_nfp_overhead_ratio"
    }


def write_engine(folder: Path, **changes: Any) -> None:
    values = {"model_name": "m", "engine": "0", "state": State.STEADY, **changes}
    write_snapshot(folder / "engine-0.json", Snapshot(**values))


def sample(collector: NfpCollector, name: str) -> float | None:
    return next(
        (s.value for metric in collector.collect() for s in metric.samples if s.name == name), None
    )


def test_ten_thousand_scrapes_read_a_file_once_for_each_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def reading(path: Path) -> Snapshot:
        reads.append(path)
        return read_snapshot(path)

    monkeypatch.setattr(hand_over, "read_snapshot", reading)
    write_engine(tmp_path, probe_seconds=1.0)
    collector = NfpCollector(str(tmp_path))
    for _ in range(10_000):
        assert sum(1 for _ in collector.collect()) > 10
    assert len(reads) == 1
    write_engine(tmp_path, probe_seconds=2.0)
    assert sample(collector, "vllm_nfp_probe_gpu_seconds_total") == 2.0
    assert len(reads) == 2
    (tmp_path / "engine-0.json").unlink()
    assert sample(collector, "vllm_nfp_probe_gpu_seconds_total") is None


STATE_METRICS = {"vllm_nfp_state", "vllm_nfp_state_info", "vllm_nfp_age_seconds"}


def shown(collector: NfpCollector) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for metric in collector.collect():
        for one in metric.samples:
            found.setdefault(one.name, []).append((one.labels, one.value))
    return found


def lose_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def lose_file(folder: Path) -> None:
    (folder / "engine-0.json").unlink()


def break_file(folder: Path) -> None:
    (folder / "engine-0.json").write_text("{")


def link_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.symlink_to(folder.with_name("moved"))


@pytest.mark.parametrize(
    ("lose", "why"),
    [
        (lose_folder, "the hand-over directory is gone"),
        (lose_file, "the hand-over file is gone"),
        (break_file, "the hand-over file cannot be used"),
        (link_folder, "the hand-over directory is not this user's any more"),
    ],
)
def test_an_engine_whose_results_are_lost_keeps_state_and_age_until_they_are_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lose: Callable[[Path], None], why: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    told = replace(FULL, updated_monotonic_seconds=time.monotonic() - 30.0)
    write_snapshot(engine_file(str(folder), "0"), told)
    collector = NfpCollector(str(folder))
    whole = shown(collector)
    with caplog.at_level(logging.INFO, "vllm.nfp"):
        lose(folder)
        for _ in range(3):
            left = shown(collector)
            assert left.keys() == STATE_METRICS
        assert [labels["state"] for labels, on in left["vllm_nfp_state"] if on] == ["steady"]
        ((labels, _),) = left["vllm_nfp_state_info"]
        assert labels["reason"].startswith(why)
        assert labels["model_name"] == FULL.model_name
        ((_, age),) = left["vllm_nfp_age_seconds"]
        assert 30.0 <= age < 60.0
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(exist_ok=True)
        write_snapshot(engine_file(str(folder), "0"), told)
        for _ in range(3):
            back = shown(collector)
    assert back.keys() == whole.keys()
    assert "vllm_nfp_state_info" not in back
    lines = [record.message for record in caplog.records]
    assert len([line for line in lines if "cannot be read now" in line]) == 1
    assert len([line for line in lines if "are there again" in line]) == 1


def test_a_passive_engine_whose_results_are_lost_says_both_reasons(tmp_path: Path) -> None:
    write_engine(tmp_path, state=State.PASSIVE, reason="LoRA is on")
    collector = NfpCollector(str(tmp_path))
    shown(collector)
    (tmp_path / "engine-0.json").unlink()
    ((labels, _),) = shown(collector)["vllm_nfp_state_info"]
    assert labels["state"] == "passive"
    assert labels["reason"] == "the hand-over file is gone; LoRA is on"


def test_another_users_folder_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_engine(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    found = shown(NfpCollector(str(tmp_path)))
    assert found.keys() == STATE_METRICS - {"vllm_nfp_age_seconds"}


def test_before_the_first_results_the_state_is_there_with_a_reason(tmp_path: Path) -> None:
    collector = NfpCollector(str(tmp_path))
    found = shown(collector)
    assert found.keys() == {"vllm_nfp_state", "vllm_nfp_state_info"}
    assert [labels["state"] for labels, on in found["vllm_nfp_state"] if on] == ["warming"]
    ((labels, _),) = found["vllm_nfp_state_info"]
    assert labels["reason"] == "no engine has handed over any results yet"
    write_engine(tmp_path)
    assert [labels["model_name"] for labels, _ in shown(collector)["vllm_nfp_state"]] == ["m"] * 5


def test_many_scrapes_at_a_time_get_whole_answers(tmp_path: Path) -> None:
    write_engine(tmp_path, probe_seconds=1.0)
    collector = NfpCollector(str(tmp_path))
    expected = len(list(collector.collect()))
    writing = threading.Lock()

    def scrape(index: int) -> int:
        if index % 10 == 0:
            with writing:  # an engine has one writer
                write_engine(tmp_path, probe_seconds=float(index))
        slow = collector.collect()  # read piece by piece, while others scrape
        return sum(1 for _ in slow)

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(scrape, range(400))) == {expected}


def test_an_engine_that_is_gone_is_told_by_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_engine(tmp_path, updated_monotonic_seconds=1000.0)
    collector = NfpCollector(str(tmp_path))
    for now in (1003.0, 1500.0):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        assert sample(collector, "vllm_nfp_age_seconds") == now - 1000.0


def test_real_steps_and_memory_are_told(tmp_path: Path) -> None:
    rows = StepLatency(8, 1024, 2, 70, 0.007, 0.009), StepLatency(8, 1024, 3, 70, 0.008)
    write_engine(tmp_path, steps=rows, graph_bytes=5, host_bytes=6, budget_slack=0.5)
    text = generate_text(NfpCollector(str(tmp_path)))
    cell = 'batch_size="8",context="1024",engine="0",model_name="m",positions="2"'
    for line in (
        f"vllm_nfp_step_latency_seconds{{{cell}}} 0.007",
        f"vllm_nfp_steps_total{{{cell}}} 70.0",
        f"vllm_nfp_step_period_seconds{{{cell}}} 0.009",
        'vllm_nfp_memory_bytes{engine="0",kind="gpu",model_name="m"} 5.0',
        'vllm_nfp_memory_bytes{engine="0",kind="host",model_name="m"} 6.0',
        'vllm_nfp_budget_slack_ratio{engine="0",model_name="m"} 0.5',
    ):
        assert line in text
    assert text.count("vllm_nfp_step_period_seconds{") == 1, "the other's is not known"
    assert text.count("vllm_nfp_step_latency_seconds{") == 2


def test_the_recommended_lengths_take_host_time_from_periods() -> None:
    rows = StepLatency(8, 1024, 2, 300, 0.007, 0.0075), StepLatency(8, 1024, 3, 100, 0.008, 0.0095)
    snapshots = [Snapshot("m", "0", State.STEADY, steps=rows), Snapshot("m", "1", State.STEADY)]
    prompts = CounterMetricFamily("vllm:inter_token_latency_seconds", "", labels=["engine"])
    prompts.samples += [
        Sample(f"vllm:inter_token_latency_seconds_{end}", {"engine": "0"}, value)
        for end, value in (("sum", 88.0), ("count", 3200.0))
    ]
    demand_of = told_demand([], [prompts, *steps(snapshots)], 0.7)
    hosts = [getattr(demand_of(engine), "host_seconds", None) for engine in ("0", "1")]
    assert hosts == [pytest.approx((3 * 0.0005 + 0.0015) / 4), 0.0]


def generate_text(collector: NfpCollector) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def values_of(snapshot: Snapshot, name: str) -> dict[tuple[str, ...], float]:
    """Samples of one metric by the values of their labels, without model and engine."""
    return {
        tuple(
            value for label, value in one.labels.items() if label not in ("model_name", "engine")
        ): one.value
        for family in families_of([snapshot])
        for one in family.samples
        if one.name == name
    }


def point(module: str, context: int, positions: int, samples: int = 0, **more: Any) -> CurvePoint:
    ratio = 1.0 + positions / 100
    return CurvePoint(
        module, 8, context, positions, samples, ratio / 100, ratio, ratio - 0.01, ratio + 0.01,
        more.pop("execution", "full"), **more,
    )  # fmt: skip


def test_no_series_says_what_another_says() -> None:
    modules = ("model", "attention", "dense_ffn", "communication")
    curves = tuple(point(m, c, n) for m in modules for c in (256, 1024) for n in (1, 2))
    snapshot = replace(FULL, curves=(*curves[:-1], replace(curves[-1], samples=3)))
    latency = values_of(snapshot, "vllm_nfp_module_latency_seconds")
    assert {(module, context) for module, _, context, _ in latency} == {
        ("model", "256"), ("model", "1024"), ("attention", "256"), ("attention", "1024"),
        ("dense_ffn", "256"), ("communication", "256"),
    }  # fmt: skip
    assert {key[0] for key in values_of(snapshot, "vllm_nfp_execution_info")} == {"model"}
    assert values_of(snapshot, "vllm_nfp_samples") == {}
    run = replace(FULL, curves=(point("attention", 1024, 2, 3), point("model", 256, 1)))
    assert values_of(run, "vllm_nfp_samples") == {("attention", "8", "1024", "2"): 3.0}


def test_a_ratio_has_its_interval_and_basis() -> None:
    two = point("model", 1024, 2, basis=Basis.INFERRED)
    unsure = replace(point("model", 1024, 4), ratio_lower=0.0, ratio_upper=None)
    snapshot = replace(FULL, curves=(replace(point("model", 1024, 1), ratio=1.0), two, unsure))
    name = "vllm_nfp_step_time_ratio"
    assert values_of(snapshot, name) == {
        ("8", "1024", "1"): 1.0, ("8", "1024", "2"): two.ratio, ("8", "1024", "4"): unsure.ratio,
    }  # fmt: skip
    assert values_of(snapshot, f"{name}_lower") == {("8", "1024", "2"): two.ratio_lower}
    assert values_of(snapshot, f"{name}_upper") == {("8", "1024", "2"): two.ratio_upper}
    assert values_of(snapshot, f"{name}_basis") == {
        ("8", "1024", "2", "inferred"): 1.0, ("8", "1024", "4", "measured"): 1.0,
    }  # fmt: skip


def test_a_ratio_that_the_host_bounds_lies_in_its_interval() -> None:
    """Beyond the CUDA graphs a step takes what the host needs, whatever the GPU does."""
    one = replace(point("model", 1024, 1), ratio=1.0)
    two = point("model", 1024, 2, execution="none", seconds_upper=0.03)
    name = "vllm_nfp_step_time_ratio"
    found = {
        end: values_of(replace(FULL, curves=(one, two)), f"{name}{end}")["8", "1024", "2"]
        for end in ("", "_lower", "_upper")
    }
    assert found[""] > two.ratio_upper
    assert found["_lower"] == found[""] == found["_upper"]


def test_a_probe_without_a_prior_names_none() -> None:
    assert values_of(replace(FULL, prior="", prior_reason=""), "vllm_nfp_prior_info") == {}


def test_a_scrape_in_a_thread_gives_way_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM answers /metrics in a thread of the process that streams tokens."""
    curves = tuple(point("model", 1024, n) for n in range(1, 513))
    first = replace(curves[0], ratio=1.0, ratio_lower=1.0)
    write_snapshot(engine_file(str(tmp_path), "0"), replace(FULL, curves=(first, *curves[1:])))
    collector = NfpCollector(str(tmp_path))
    slept: list[float] = []
    monkeypatch.setattr("vllm_nfp.give_way.time.sleep", slept.append)
    monkeypatch.setattr("vllm_nfp.give_way.LEAST_SECONDS", 0.0)
    here = generate_text(collector)
    assert slept == [], "the main thread serves"
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(generate_text, collector).result()
    assert beside == here
    series = sum(not line.startswith("#") for line in here.splitlines())
    assert series > 2000
    assert len(slept) > series / 50, "the families were built before: this is their text"
