"""Probes beside LoRA adapters: requests keep theirs, and a probe runs without any."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import RANK, write_adapter
from generate import prompts
from parts import attaching, engine_of, prober_of, started_engine
from rounds import rounds

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


@pytest.fixture(scope="module")
def adapters(dense_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    model = json.loads((dense_model / "config.json").read_text())
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / str(seed), seed, model) for seed in (1, 2)]


@pytest.fixture(scope="module")
def llm(dense_model: Path) -> Iterator[Any]:
    with started_engine(
        dense_model, dtype="float32", max_num_seqs=24, enable_lora=True, max_loras=2,
        max_lora_rank=RANK,
    ) as started:  # fmt: skip
        yield started


@pytest.fixture
def start(llm: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    with attaching() as begin:
        yield lambda **changes: begin(
            config_from_mapping({**SETTINGS, "run_dir": str(tmp_path), **changes}), worker_of(llm)
        )


def generate(llm: Any, adapters: list[Path], mixed: bool = True) -> list[list[int]]:
    """In turn without an adapter, with the one and with the other."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    loras = [None, *(LoRARequest(f"a{i}", i + 1, str(path)) for i, path in enumerate(adapters))]
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, detokenize=False)
    requests = [{"prompt_token_ids": ids} for ids in prompts(9)]
    chosen = [loras[i % 3] if mixed else None for i in range(len(requests))]
    outputs = llm.generate(requests, params, lora_request=chosen, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_requests_keep_their_adapters_while_probes_run(
    llm: Any, adapters: list[Path], start: Callable[..., Any], tmp_path: Path
) -> None:
    plain, expected = generate(llm, adapters, mixed=False), generate(llm, adapters)
    # vLLM 0.32 on a CPU changes requests without an adapter as well, in a batch with adapters.
    changed = [one != two for one, two in zip(plain, expected, strict=True)]
    assert changed[1::3] == changed[2::3] == [True] * 3, "the adapters change nothing"
    assert generate(llm, adapters) == expected, "the server repeats itself not"
    session = start()
    assert session.active, read_snapshot(tmp_path / "engine-0.json").reason
    for _ in rounds():
        assert generate(llm, adapters) == expected
        if prober_of(session).outcomes["measured"] > 5:
            break
    assert session.active, read_snapshot(tmp_path / "engine-0.json").reason
    assert prober_of(session).outcomes["measured"] > 5, "too few probes ran to tell"


def test_a_probe_runs_no_adapter_and_leaves_the_mapping(
    llm: Any, adapters: list[Path], start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(llm, adapters)
    manager = worker_of(llm).model_runner.lora_manager._adapter_manager
    (wrapper,) = manager.punica_wrapper_mapping.values()
    engine = engine_of(start(overhead_budget=0.0, startup_seconds=0.0))
    before = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in vars(wrapper).items()
    }
    last, counted = manager._last_mapping, []
    for name in ("_apply_shrink", "_apply_expand"):
        real = getattr(type(wrapper), name)
        monkeypatch.setattr(
            type(wrapper), name, lambda *a, real=real, **k: (counted.append(1), real(*a, **k))[1]
        )
    with torch.inference_mode():
        for shape in (Shape(1, 32, 1), Shape(4, 128, 8)):  # less and more than a step's tokens
            assert engine.poll(engine.launch(shape)) is not None
    assert counted == [], "an adapter ran"
    after = vars(wrapper)
    assert after.keys() == before.keys(), "something was left behind"
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name]), name
        else:
            assert value is after[name] or value == after[name], name
    assert manager._last_mapping is last
    generate(llm, adapters)
    assert counted, "steps run no adapter either"
