"""Outputs with and without the probe are the same, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import kinds
import pytest
from programs import run_program

from vllm_nfp.config import ENV_VAR, config_from_mapping
from vllm_nfp.results.snapshot import read_snapshot
from vllm_nfp.types import State

pytestmark = pytest.mark.engine

GENERATE = Path(__file__).with_name("generate.py")


def generate(
    model: Path, out: Path, mode: str, probe: dict[str, object] | None
) -> list[dict[str, object]]:
    settings = {} if probe is None else {ENV_VAR: config_from_mapping(probe).to_json()}
    done = run_program(GENERATE, model, out, mode, environment=settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def rotary_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It reads pictures, and its rotary positions have three dimensions."""
    return kinds.rotary(tmp_path_factory.mktemp("rotary"))


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kinds.multimodal(tmp_path_factory.mktemp("multimodal"))


@pytest.fixture(scope="module")
def wide_angles_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its rotary table has another type than its queries."""
    return kinds.wide_angles(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def hybrid_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kinds.hybrid(tmp_path_factory.mktemp("hybrid"))


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It writes English: SmolLM2-135M-Instruct, of a package that not every machine has."""
    return kinds.real(tmp_path_factory.mktemp("real"))


FEW_SHAPES = {"batch_sizes": [1, 4, 8], "contexts": [32, 128], "capture_seconds": 2.0}
WHOLE_TABLE = {"capture_seconds": 0.0, "wanted_samples": 1}
"""Of the server; its shapes run for the first time between real steps."""


COMPILED_KINDS = (
    "dense_model", "moe_model", "sliding_model", "hybrid_model", "rotary_model", "real_model",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "mode", "shapes"),
    [
        ("dense_model", "chunked", FEW_SHAPES),
        ("dense_model", "seeded", WHOLE_TABLE),
        ("moe_model", "seeded", FEW_SHAPES),
        ("sliding_model", "narrow", FEW_SHAPES),
        ("rotary_model", "pictures", FEW_SHAPES),
        ("real_model", "text", FEW_SHAPES),
        ("wide_angles_model", "compiled", FEW_SHAPES),
        pytest.param("rotary_model", "seeded", FEW_SHAPES, marks=pytest.mark.thorough),
        pytest.param("picture_model", "pictures", WHOLE_TABLE, marks=pytest.mark.thorough),
        pytest.param("dense_model", "embedded", FEW_SHAPES, marks=pytest.mark.thorough),
        pytest.param("latent_model", "seeded", FEW_SHAPES, marks=pytest.mark.thorough),
        *(
            pytest.param(kind, "compiled", FEW_SHAPES, marks=pytest.mark.thorough)
            for kind in COMPILED_KINDS
        ),
    ],
)
def test_tokens_and_logprobs_do_not_change(
    kind: str,
    mode: str,
    shapes: dict[str, object],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    model = request.getfixturevalue(kind)
    plain = generate(model, tmp_path / "plain.json", mode, None)
    probe = {
        **shapes,
        "max_positions": 8,
        "overhead_budget": 0.5,
        "step_share": 1.0,
        # Steps that are full of prompts' chunks leave little between them: there the scan at the
        # start, which a busy machine slows down, runs before the first of them.
        "startup_seconds": 6.0 if mode == "chunked" else 0.5 if shapes is FEW_SHAPES else 0.0,
        "publish_seconds": 0.2,
        "run_dir": str(tmp_path),
        "output_dir": str(tmp_path),
    }
    assert len({tuple(one["tokens"]) for one in plain}) > 10, "the model repeats itself"
    ran = prepared = 0
    for _ in range(4):  # a busy machine runs few probes at a time
        probed = generate(model, tmp_path / "probed.json", mode, probe)
        assert probed == plain
        snapshot = read_snapshot(tmp_path / "engine-0.json")
        scanned = snapshot.probes["startup"] if mode == "chunked" else 0
        assert snapshot.state not in (State.PASSIVE, State.DISABLED), snapshot.reason
        ran += snapshot.probes["measured"] + scanned
        prepared += snapshot.probes["prepared"]
        if ran >= 5 and (prepared >= 5 or shapes is FEW_SHAPES):
            break
    assert ran >= 5, "too few probes ran to tell"
    assert prepared >= 5 or shapes is FEW_SHAPES, "too few shapes were made ready to tell"
