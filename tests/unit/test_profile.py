from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import GPU_RESULTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vllm_nfp
from vllm_nfp.config import ProbeConfig
from vllm_nfp.dataframe import NoPandasError
from vllm_nfp.results.profile import (
    MAX_FILE_BYTES,
    Profile,
    ProfileError,
    load_profile,
    profile_file,
    profile_of,
    save_profile,
)
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import (
    Basis,
    Boundary,
    CurvePoint,
    Device,
    Environment,
    LayerLatency,
    ModelDescription,
    State,
)

ENVIRONMENT = Environment(
    1795530169.0, Device("cuda", "H100", "580.1", 132, 80 << 30), "0.1.0", "0.32.0", "2.13", "13.0",
    "3.12.3",
)  # fmt: skip
SNAPSHOT = Snapshot(
    model_name="m",
    engine="0",
    state=State.STEADY,
    probes={"startup": 3},
    curves=(
        CurvePoint("model", 8, 1024, 1, 12, 0.0070, 1.0, 1.0, 1.0, "full", 0.0069, 0.0071),
        CurvePoint("model", 8, 1024, 2, 6, 0.0071, 1.01, 1.0, None, "full"),
    ),
    boundaries=(Boundary("model", 8, 1024, 0.1, 2, 1, 2, True, 2),),
    layer_times=(LayerLatency(0, "attention", 8, 1024, 1, 5, 1e-5),),
)
SMALL = profile_of(
    SNAPSHOT, ENVIRONMENT, ModelDescription("m", num_layers=3), ProbeConfig().for_server(32, 16384)
)


def test_a_profile_survives_its_file(tmp_path: Path, dense_profile: Profile) -> None:
    path = tmp_path / "profile.json"
    for profile in (SMALL, dense_profile):
        save_profile(path, profile)
        assert vllm_nfp.load_profile(path) == profile
        path.write_text(json.dumps(profile.to_dict()))
        assert vllm_nfp.load_profile(path) == profile
    assert list(tmp_path.iterdir()) == [path], "a temporary file was left"


def test_a_basis_survives_and_older_profiles_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    inferred = replace(
        SMALL,
        probe=replace(SMALL.probe, min_samples=1, wanted_samples=0),
        curves=tuple(replace(row, samples=0, basis=Basis.INFERRED) for row in SMALL.curves),
        boundaries=tuple(replace(row, basis=Basis.PREDICTED) for row in SMALL.boundaries),
    )
    save_profile(path, inferred)
    assert load_profile(path) == inferred
    values = inferred.to_dict()
    for row in (*values["curves"], *values["boundaries"]):
        del row["basis"]
    path.write_text(json.dumps(values))
    old = load_profile(path)
    assert {row.basis for row in (*old.curves, *old.boundaries)} == {Basis.MEASURED}


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profile.json"
    save_profile(path, SMALL)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        save_profile(path, replace(SMALL, boundaries=()))
    monkeypatch.undo()
    assert load_profile(path) == SMALL
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_the_estimates_of_the_gpu_run_come_out_again(
    name: str, dense_profile: Profile, moe_profile: Profile
) -> None:
    """The fixture is that of the run: its intervals hold what the server published from pairs of
    each point alone, and hardly any NFP differs."""
    profile = {"dense": dense_profile, "moe": moe_profile}[name]
    table = json.loads((GPU_RESULTS / f"{name}-table.json").read_text())["snapshot"]
    published = {(r["module"], r["batch_size"], r["context"], r["epsilon"]): r["positions"]
                 for r in table["boundaries"]}  # fmt: skip
    found = {(r.module, r.batch_size, r.context, r.epsilon): r for r in profile.boundaries}
    assert found.keys() == published.keys()
    assert [key for key, row in found.items()
            if not row.lower <= published[key] <= row.upper] == []  # fmt: skip
    assert sum(row.positions != published[key] for key, row in found.items()) <= 6
    assert len(profile.layer_times) > 500


def test_a_light_import_loads_no_profile() -> None:
    code = (
        "import sys, vllm_nfp; "
        "unloaded = {'numpy', 'torch', 'vllm_nfp.results.profile'}; "
        "assert not unloaded & set(sys.modules), sys.modules; "
        "vllm_nfp.load_profile; assert 'torch' not in sys.modules; assert 'vllm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = vllm_nfp.nothing_such


def test_tables_become_data_frames(dense_profile: Profile) -> None:
    frame = dense_profile.to_dataframe()
    row = frame.query("module == 'model' and batch_size == 8 and context == 1024").iloc[1]
    assert row.epsilon == 0.1
    assert row.positions == 16
    assert len(dense_profile.to_dataframe("curves")) == len(dense_profile.curves)
    empty = replace(SMALL, layer_times=()).to_dataframe("layer_times")
    assert list(empty.columns)[:2] == ["layer", "module"]
    with pytest.raises(ProfileError, match="no table 'nonsense': take boundaries"):
        SMALL.to_dataframe("nonsense")  # type: ignore[arg-type]


def test_without_pandas_a_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(NoPandasError, match="pip install pandas"):
        SMALL.to_dataframe()


def refused(path: Path) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must hold a JSON object, not list"),
        (b"{}", "is not a profile: make one with vllm-nfp measure"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 1_000_000, "not valid JSON"),
        (b'{"a":' * 500_000, "not valid JSON"),
        (b'{"kind": NaN}', "NaN is not a number of JSON"),
        (b'{"kind": ' + b"9" * 100_000 + b"}", "not valid JSON"),
        (b'{"kind": "vllm-nfp profile", "schema": 99}', "has schema 99, this vllm-nfp reads 1"),
        (b'{"kind": "vllm-nfp profile", "schema": {"a": 1}}', "has schema"),
        (b'{"kind": "vllm-nfp profile", "schema": 1}', "missing required field 'environment'"),
    ],
)
def test_hostile_files_are_refused_in_a_sentence(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    assert part in refused(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.json")
    assert "is not a file" in refused(tmp_path)
    assert "is not a file path" in refused(Path("a\0b"))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert "larger than" in refused(path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"curves": [{}]}, "p.json.curves[0]: object missing required field 'module'"),
        ({"curves": None}, "p.json.curves: expected 'array'"),
        ({"extra": 1}, "has the unknown field 'extra'"),
        ({"run": {"engine": "0", "runner": "v2", "state": "asleep"}}, "must be one of warming"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**SMALL.to_dict(), **change}))
    assert part in refused(path)


@pytest.mark.parametrize(
    ("table", "field", "value", "part"),
    [
        ("curves", "median_seconds", 0.0, "median_seconds: expected 'float' > 0"),
        ("curves", "median_seconds", 1e999, "not a number of JSON"),
        ("curves", "ratio", 5.0, "outside its interval"),
        ("curves", "positions", 2, "two rows for the same point"),
        ("curves", "module", "<script>", "module must be one of model, "),
        ("curves", "batch_size", 0, "batch_size: expected 'int' >= 1"),
        ("curves", "context", 1 << 40, "context: expected 'int' <= 4294967295"),
        ("curves", "context", 1 << 60, "too large"),
        ("curves", "samples", True, "expected 'int', got 'bool'"),
        ("boundaries", "lower", 3, "outside its interval"),
        ("boundaries", "epsilon", -0.1, "epsilon: expected 'float' > 0"),
        ("layer_times", "layer", -1, "layer: expected 'int' >= 0"),
    ],
)
def test_rows_that_cannot_be_are_refused(
    tmp_path: Path, table: str, field: str, value: object, part: str
) -> None:
    values = SMALL.to_dict()
    values[table][0][field] = value
    path = tmp_path / "p.json"
    path.write_text(json.dumps(values))
    assert part in refused(path)


def test_a_number_beyond_floats_is_refused(tmp_path: Path) -> None:
    text = json.dumps(SMALL.to_dict()).replace(
        '"median_seconds": 0.007,', '"median_seconds": 1e999,'
    )
    assert "1e999" in text
    path = tmp_path / "p.json"
    path.write_text(text)
    assert "median_seconds: number out of range" in refused(path)


def test_more_cells_than_a_probe_has_are_refused() -> None:
    rows = tuple(replace(SMALL.curves[0], context=1 + i) for i in range(17))
    with pytest.raises(ValueError, match="more than 16 values of context"):
        replace(SMALL, curves=rows)


def test_a_curve_without_its_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="model at B=8 L=1024 lacks its point at N = 1"):
        replace(SMALL, curves=SMALL.curves[1:])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values below ``value``."""
    if isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(entry, (*path, key))


GOOD = SMALL.to_dict()
PLACES = list(places(GOOD))
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([1e308, -1, 0, 1 << 70, float("nan"), float("inf"), "\0", "a" * 10_000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(place=st.sampled_from(PLACES), value=ANY_JSON)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_value_in_any_place_loads_or_is_refused(
    tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    values = copy.deepcopy(GOOD)
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "p.json"
    path.write_text(json.dumps(values))
    try:
        found = load_profile(path)
    except ProfileError as error:
        assert str(error)
    else:
        save_profile(path, found)
        assert load_profile(path) == found


@given(end=st.integers(0, 10_000), junk=st.binary(max_size=40))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_truncated_and_damaged_files_load_or_are_refused(
    tmp_path: Path, end: int, junk: bytes
) -> None:
    raw = json.dumps(GOOD).encode()
    path = tmp_path / "p.json"
    path.write_bytes(raw[: end % len(raw)] + junk + raw[end % len(raw) + len(junk) :])
    try:
        load_profile(path)
    except ProfileError as error:
        assert str(error)
    path.write_bytes(raw[: end % len(raw)])
    with pytest.raises(ProfileError):
        load_profile(path)


def test_the_file_of_an_engine_has_its_number_alone() -> None:
    assert profile_file("/x", "3") == Path("/x/profile-3.json")
    with pytest.raises(ValueError, match="not a number"):
        profile_file("/x", "../3")


def test_a_notebook_shows_a_table_and_no_thousands_of_characters(dense_profile: Profile) -> None:
    assert len(repr(dense_profile)) < 200
    shown = dense_profile._repr_html_()
    assert len(shown) < 20_000
    assert "within 10%" in shown and "<tr><td>1024</td><td>8</td>" in shown
    from vllm_nfp import recommend

    found = recommend(dense_profile, 0.7)
    assert len(repr(found)) < 300
    predicted = vllm_nfp.predict("qwen3-8b", "H100-SXM", batch_sizes=(1,), contexts=(1024,))
    assert repr(predicted) == "Predictions(qwen3-8b on H100-SXM: 3 rows)"
    assert "<tr><td>1024</td><td>1</td>" in found._repr_html_()
