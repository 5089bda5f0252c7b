"""Files of kernel samples: what is written comes back, and what others wrote is not trusted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_nfp.calibrate import points
from vllm_nfp.calibrate.points import (
    Curve,
    Kernel,
    KernelSamples,
    SampleError,
    Series,
    read_samples,
    write_samples,
)

LINEAR = Curve(
    Series(Kernel.LINEAR, name="mlp.down_proj"),
    (1, 2, 8),
    ((1e-5, 1.1e-5), (1.2e-5, 1.3e-5), (2e-5, 2.00001e-5)),
    inputs=4096,
    outputs=1024,
    weight_bytes=8388608,
)
ATTENTION = Curve(Series(Kernel.ATTENTION, 8, 4096, causal=False), (1, 3), ((1e-4,), (2e-4,)))
SAMPLES = KernelSamples(
    "llama", {"hidden_size": 4096}, {"vllm": "0.32.0", "arguments": {}}, (LINEAR, ATTENTION)
)


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    path = tmp_path / "good.jsonl"
    write_samples(path, SAMPLES)
    return path.read_text().splitlines()


def test_samples_come_back(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    write_samples(plain, SAMPLES)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_samples(plain) == SAMPLES
    assert read_samples(packed) == SAMPLES


def test_medians_and_spread() -> None:
    assert LINEAR.medians == pytest.approx((1.05e-5, 1.25e-5, 2.000005e-5))
    assert LINEAR.spread == pytest.approx(0.1 / 1.25)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernel", "softmax"),
        ("positions", [1, 2]),
        ("positions", [2, 1, 8]),
        ("positions", [0, 1, 2]),
        ("positions", [1, 2, 1 << 70]),
        ("positions", [1, 2, 2.5]),
        ("positions", []),
        ("positions", None),
        ("seconds", [[1e-5], [], [1e-5]]),
        ("seconds", [[1e-5], [0.0], [1e-5]]),
        ("seconds", [[1e-5], [float("nan")], [1e-5]]),
        ("seconds", [[1e-5], [float("inf")], [1e-5]]),
        ("seconds", [[1e-5], [10**400], [1e-5]]),
        ("inputs", -1),
        ("weight_bytes", float("inf")),
        ("batch_size", "8"),
    ],
)
def test_impossible_curves_are_refused(
    tmp_path: Path, lines: list[str], field: str, value: object
) -> None:
    path = tmp_path / "bad.jsonl"
    row = {**json.loads(lines[1]), field: value}
    path.write_text(f"{lines[0]}\n{json.dumps(row)}\n")
    with pytest.raises(SampleError, match=r"bad\.jsonl holds no kernel samples"):
        read_samples(path)


@pytest.mark.parametrize("field", ["model", "config", "environment"])
@pytest.mark.parametrize("value", [None, 3, []])
def test_impossible_headers_are_refused(
    tmp_path: Path, lines: list[str], field: str, value: object
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({**json.loads(lines[0]), field: value}))
    with pytest.raises(SampleError, match="header"):
        read_samples(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.lists(JSON.map(json.dumps), max_size=3).map(lambda rows: "\n".join(rows).encode())
)
def test_anything_else_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    for name, raw in (("x.jsonl", content), ("x.jsonl.gz", content),
                      ("y.jsonl.gz", gzip.compress(content))):  # fmt: skip
        path = tmp_path / name
        path.write_bytes(raw)
        with pytest.raises(SampleError, match="holds no kernel samples"):
            read_samples(path)


def test_deep_json_missing_files_and_cut_streams_are_refused(tmp_path: Path) -> None:
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000)
    with pytest.raises(SampleError, match="deep"):
        read_samples(deep)
    with pytest.raises(SampleError, match="cannot be read: No such file"):
        read_samples(tmp_path / "none.jsonl")
    cut = tmp_path / "cut.jsonl.gz"
    write_samples(tmp_path / "a.jsonl", SAMPLES)
    cut.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes())[:-12])
    with pytest.raises(SampleError, match="cut off"):
        read_samples(cut)


@pytest.mark.parametrize("name", ["bomb.jsonl", "bomb.jsonl.gz"])
def test_a_file_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(points, "MAX_SAMPLE_BYTES", 1 << 20)
    bomb = tmp_path / name
    content = b" " * (64 << 20)
    bomb.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(SampleError, match=r"MiB|larger than 1048576 bytes"):
        read_samples(bomb)
