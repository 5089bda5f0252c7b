"""On a CUDA GPU: the probe beside each attention backend, and beside LoRA adapters in CUDA graphs.

pytest -m gpu tests/gpu/test_backends.py
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import kinds
import pytest
from adapters import write_adapter
from test_gpu import PROBE, check, generate

from vllm_nfp.results.snapshot import read_snapshot
from vllm_nfp.types import State

pytestmark = pytest.mark.gpu


def needs(name: str, package: str | None = None, heads: str = "dense") -> Any:
    """A backend, the package that its kernels are in, and the kind of model that it serves."""
    missing = package is not None and importlib.util.find_spec(package) is None
    mark = pytest.mark.skipif(missing, reason=f"{name} needs {package}")
    return pytest.param(name, heads, marks=mark)


BACKENDS = [
    needs("FLASH_ATTN"),
    needs("TRITON_ATTN"),
    needs("FLEX_ATTENTION"),
    needs("FLASHINFER", "flashinfer"),
    needs("FLASH_ATTN_MLA", heads="latent"),
    needs("FLASHMLA", "vllm._flashmla_C", heads="latent"),
    needs("FLASHINFER_MLA", "flashinfer", heads="latent"),
]


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kinds.latent(tmp_path_factory.mktemp("latent"))


@pytest.mark.parametrize(("backend", "heads"), BACKENDS)
def test_outputs_do_not_change_beside_a_backend(
    backend: str, heads: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Its own metadata, and the proof of each shape's first run, on every KV cache it has."""
    model = request.getfixturevalue(f"{heads}_model")
    more = {"attention_backend": backend}
    plain = generate(model, tmp_path / "plain.json", None, **more)
    assert len({tuple(one["tokens"]) for one in plain}) > 8, "the model repeats itself"
    probe = {**PROBE, "run_dir": str(tmp_path)}
    assert generate(model, tmp_path / "probed.json", probe, **more) == plain
    snapshot = check(tmp_path)
    print(backend, sorted({row.execution for row in snapshot.curves}), snapshot.probes)


def test_a_backend_that_takes_a_second_position_for_a_prompt_is_not_probed(
    latent_model: Path, tmp_path: Path
) -> None:
    """Where the server speculates it takes its drafts for decoding, and this one does not."""
    more = {"attention_backend": "TRITON_MLA"}
    plain = generate(latent_model, tmp_path / "plain.json", None, **more)
    probe = {**PROBE, "run_dir": str(tmp_path)}
    assert generate(latent_model, tmp_path / "probed.json", probe, **more) == plain
    snapshot = read_snapshot(tmp_path / "engine-0.json")
    assert snapshot.state is State.PASSIVE
    assert "for a prompt" in snapshot.reason


@pytest.mark.parametrize(("mode", "execution"), [("graphs", "full"), ("piecewise", "piecewise")])
def test_outputs_do_not_change_beside_adapters_in_graphs(
    dense_model: Path, tmp_path: Path, mode: str, execution: str
) -> None:
    """Graphs of both kinds hold no adapter; requests with and without one keep theirs."""
    config = json.loads((dense_model / "config.json").read_text())
    folders = [str(write_adapter(tmp_path / f"a{seed}", seed, config)) for seed in (1, 2)]
    bare = generate(dense_model, tmp_path / "bare.json", None, mode)
    plain = generate(dense_model, tmp_path / "plain.json", None, mode, adapters=folders)
    changed = [one["tokens"] != two["tokens"] for one, two in zip(bare, plain, strict=True)]
    assert all(changed[1::3]) and all(changed[2::3]), "the adapters change nothing"
    probe = {**PROBE, "run_dir": str(tmp_path)}
    assert generate(dense_model, tmp_path / "probed.json", probe, mode, adapters=folders) == plain
    assert {row.execution for row in check(tmp_path).curves} == {execution}
