"""Probes beside KV connectors: one that loads in the step, and one whose blocks arrive between."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import late_connector
import pytest
import torch
from parts import attaching, engine_of, prober_of, started_engine
from rounds import rounds

from vllm_nfp.adapter import connectors
from vllm_nfp.adapter.engines import worker_of
from vllm_nfp.config import config_from_mapping
from vllm_nfp.results.snapshot import read_snapshot
from vllm_nfp.types import Shape

pytestmark = pytest.mark.engine

SETTINGS = {
    "batch_sizes": [1, 4], "contexts": [32, 128], "max_positions": 8, "overhead_budget": 0.5,
    "capture_seconds": 2.0, "startup_seconds": 0.3, "publish_seconds": 0.1, "min_samples": 2,
    "step_share": 1.0,
}  # fmt: skip
WITHIN_A_STEP, BETWEEN_STEPS = "within", "between"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the connectors store the prompts' keys and values."""
    folder = tmp_path_factory.mktemp("stored")
    for name in (WITHIN_A_STEP, BETWEEN_STEPS):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def llm(dense_model: Path, stored: Path) -> Iterator[Any]:
    example, late = (
        {
            "kv_connector": name, "kv_role": "kv_both", **module,
            "kv_connector_extra_config": {"shared_storage_path": str(stored / place)},
        }
        for name, place, module in (
            ("ExampleConnector", WITHIN_A_STEP, {}),
            ("LateConnector", BETWEEN_STEPS, {"kv_connector_module_path": "late_connector"}),
        )
    )  # fmt: skip
    several = {
        "kv_connector": "MultiConnector", "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": [example, late]},
    }  # fmt: skip
    with started_engine(
        dense_model, dtype="float32", max_num_seqs=24, block_size=32, enable_prefix_caching=False,
        kv_transfer_config=several,
    ) as started:  # fmt: skip
        yield started


@pytest.fixture
def start(
    llm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    known = connectors._unknown
    monkeypatch.setattr(  # a test's own is not in the list
        connectors,
        "_unknown",
        lambda name, module, extra: (
            None
            if (module, name) == ("late_connector", "LateConnector")
            else known(name, module, extra)
        ),
    )
    with attaching() as begin:
        yield lambda **changes: begin(
            config_from_mapping({**SETTINGS, "run_dir": str(tmp_path), **changes}), worker_of(llm)
        )


def generate(llm: Any) -> list[list[int]]:
    from vllm import SamplingParams

    draw = random.Random(3)
    requests = [
        {"prompt_token_ids": [draw.randrange(2, 512) for _ in range(40 + 17 * i)]}
        for i in range(10)
    ]
    params = [
        SamplingParams(temperature=0.0, max_tokens=24 + 8 * i, ignore_eos=True, detokenize=False)
        for i in range(len(requests))
    ]
    return [list(o.outputs[0].token_ids) for o in llm.generate(requests, params, use_tqdm=False)]


def forget_half(stored: Path) -> None:
    """Every other prompt is then loaded by the connector whose blocks arrive between steps."""
    for folder in sorted((stored / WITHIN_A_STEP).iterdir())[::2]:
        shutil.rmtree(folder)


def test_outputs_stay_while_blocks_are_loaded_within_steps_and_between_them(
    llm: Any, start: Callable[..., Any], stored: Path, tmp_path: Path
) -> None:
    expected = generate(llm)
    assert len({tuple(one) for one in expected}) == len(expected)
    kept = sorted(path.name for path in (stored / BETWEEN_STEPS).iterdir())
    assert len(kept) > 5, "the connectors store nothing"
    forget_half(stored)
    assert generate(llm) == expected, "loaded keys and values are others"
    loaded = len(late_connector.ARRIVED)
    assert loaded > 2, "no block arrived between steps"
    session = start()
    assert session.active, read_snapshot(tmp_path / "engine-0.json").reason
    for _ in rounds():
        forget_half(stored)
        assert generate(llm) == expected
        if prober_of(session).outcomes["measured"] > 5:
            break
    assert session.active, read_snapshot(tmp_path / "engine-0.json").reason
    assert prober_of(session).outcomes["measured"] > 5, "too few probes ran to tell"
    assert len(late_connector.ARRIVED) > loaded
    assert sorted(path.name for path in (stored / BETWEEN_STEPS).iterdir()) == kept


def test_a_probe_waits_for_no_load_and_saves_nothing_even_amid_a_step(
    llm: Any, start: Callable[..., Any]
) -> None:
    """As if a step had bound its metadata and not cleared it yet."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    engine, connector = (
        engine_of(start(overhead_budget=0.0, startup_seconds=0.0)),
        (get_kv_transfer_group()),
    )
    late = connector._connectors[1]
    late.bind_connector_metadata(late_connector.LateMetadata())
    connector._connector_metadata = object()
    assert connector.has_connector_metadata()
    try:
        late_connector.CALLS.clear()
        with torch.inference_mode():
            assert engine.poll(engine.launch(Shape(4, 128, 8))) is not None
        assert late_connector.CALLS == []
    finally:
        connector._connector_metadata = None
        late.clear_connector_metadata()
    generate(llm)
    assert {"wait", "save"} & {*late_connector.CALLS}, "steps do not ask the connector either"


def test_a_connector_that_is_not_known_is_named(llm: Any) -> None:
    from vllm_nfp.adapter.support import refusal

    reason = refusal(worker_of(llm).vllm_config)
    assert reason is not None
    assert "the KV connector late_connector.LateConnector is not known" in reason
