"""A model with recurrent state is probed on states of its own; the server's stay as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kinds
import pytest
import torch
from parts import attaching, engine_of, only_times, prober_of, publisher_of, started_engine
from rounds import rounds

from vllm_nfp.adapter.engines import worker_of
from vllm_nfp.config import ProbeConfig, config_from_mapping
from vllm_nfp.probe import states
from vllm_nfp.probe.kv_check import wait_for
from vllm_nfp.results.snapshot import read_snapshot
from vllm_nfp.types import Shape, State

pytestmark = pytest.mark.engine

SETTINGS = {
    "batch_sizes": [1, 4], "contexts": [32, 128], "max_positions": 8, "publish_seconds": 0.1,
    "overhead_budget": 0.5, "step_share": 1.0, "capture_seconds": 5.0, "startup_seconds": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Qwen3-Next: three layers of Gated DeltaNet, one of attention, experts in all."""
    model = kinds.hybrid(tmp_path_factory.mktemp("hybrid"))
    with started_engine(
        model, dtype="bfloat16", max_num_seqs=8, distributed_executor_backend="uni",
        enable_prefix_caching=True,
    ) as started:  # fmt: skip
        yield started


@pytest.fixture
def worker(llm: Any) -> Any:
    return worker_of(llm)


@pytest.fixture
def start(worker: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    with attaching() as begin:
        yield lambda **changes: begin(configure(tmp_path, **changes), worker)


def configure(folder: Path, **changes: object) -> ProbeConfig:
    return config_from_mapping({**SETTINGS, "run_dir": str(folder), **changes})


def generate(llm: Any, tokens: int = 48) -> list[tuple[list[int], list[float]]]:
    """Tokens and log probabilities of sequences of several lengths, some of them sampled."""
    from vllm import SamplingParams

    requests = [
        {"prompt_token_ids": [3 + (7 * i * j) % 400 for j in range(12 + 9 * i)]} for i in range(6)
    ]
    common = {"max_tokens": tokens, "ignore_eos": True, "detokenize": False, "logprobs": 1}
    params = [
        SamplingParams(temperature=0.9 * (i % 2), seed=100 + i, **common)
        for i in range(len(requests))
    ]
    return [
        (
            list(output.outputs[0].token_ids),
            [next(iter(step.values())).logprob for step in output.outputs[0].logprobs],
        )
        for output in llm.generate(requests, params, use_tqdm=False)
    ]


def outputs_without_probe(llm: Any) -> Any:
    """What six requests are answered, which is the same again, and another answer for each."""
    expected = generate(llm)
    assert generate(llm) == expected
    assert len({tuple(tokens) for tokens, _ in expected}) == 6
    return expected


def serve_beside_pairs(llm: Any, session: Any, expected: Any) -> None:
    """The same answers come while a session runs a dozen pairs between their steps."""
    for _ in range(80):  # a busy machine runs few pairs at a time
        assert generate(llm) == expected
        if prober_of(session).outcomes["measured"] >= 12:
            break
    outcomes = prober_of(session).outcomes
    assert outcomes["measured"] >= 12, f"too few pairs ran to tell: {outcomes}"


def test_outputs_stay_while_states_are_probed(
    llm: Any, start: Callable[..., Any], tmp_path: Path, worker: Any
) -> None:
    expected = outputs_without_probe(llm)
    layers = state_layers(worker)
    before = [(layer.kv_cache, layer.num_spec) for layer in layers]
    session = start()
    serve_beside_pairs(llm, session, expected)
    for layer, (cache, drafts) in zip(layers, before, strict=True):
        assert layer.kv_cache is cache and layer.num_spec == drafts
    publisher_of(session).process()
    found = publisher_of(session).snapshot()
    modules = {"attention", "linear_attention", "moe_ffn", "model"}
    assert {row.module for row in found.boundaries} == modules
    assert {row.module for row in found.curves if row.samples} == modules
    assert found.state is not State.DISABLED, found.reason
    session.disable("the test is over", expected=True)
    assert read_snapshot(tmp_path / "engine-0.json").reason == "the test is over"
    assert generate(llm) == expected


def test_n_positions_write_n_states_for_each_sequence_and_layer(
    start: Callable[..., Any], worker: Any
) -> None:
    engine = engine_of(start(capture_seconds=1.0))
    own = engine.states
    layers = state_layers(worker)
    for batch_size, positions in ((1, 1), (4, 1), (1, 4), (4, 8)):
        with torch.inference_mode():
            own._memory.zero_()
        ticket = engine.launch(Shape(batch_size, 32, positions))
        wait_for(partial(engine.poll, ticket))
        with own.lent(batch_size, positions):
            written = [layer.kv_cache[1][1:].flatten(1).any(1).sum().item() for layer in layers]
            distinct = {layer.kv_cache[1].data_ptr() for layer in layers}
        assert written == [batch_size * positions] * 3, "N positions keep N states"
        assert len(distinct) == 3, "each layer has its own"


@pytest.mark.parametrize("late", [False, True])
def test_a_run_on_the_servers_states_disables_the_probe(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    late: bool,
) -> None:  # fmt: skip
    """At the start all states are summed up; later those that a run of this kind would hit."""
    expected = generate(llm)
    if late:
        # Some shapes run for the first time between steps.
        session = start(capture_seconds=0.0, wanted_samples=1)
        assert session.active
    real = states.on_other_states

    def sabotage(layers: Any, caches: Any, drafts: int) -> Any:
        """With drafts vLLM itself stops: a server without them has no room for their inputs."""
        return real(layers, caches, drafts) if drafts else contextlib.nullcontext()

    monkeypatch.setattr(states, "on_other_states", sabotage)
    if late:
        for _ in rounds():
            generate(llm)
            if not session.active:
                break
    else:
        session = start()
    assert not session.active
    left = read_snapshot(tmp_path / "engine-0.json")
    assert left.state is State.DISABLED and "recurrent state" in left.reason
    assert llm.reset_prefix_cache()  # what the run has written to may be in it
    assert generate(llm) == expected


@pytest.mark.parametrize("where", ["lend", "forward"])
def test_a_fault_gives_the_layers_their_states_back(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, worker: Any,
    tmp_path: Path, where: str,
) -> None:  # fmt: skip
    expected = generate(llm)
    layers = state_layers(worker)
    before = [layer.kv_cache for layer in layers]
    session = start()

    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError("a fault of the test")

    target = "states.bound" if where == "lend" else "forward.Forward.run_head"
    monkeypatch.setattr(f"vllm_nfp.probe.{target}", fails)
    if where == "lend":
        engine_of(session).states._caches.clear()
    for _ in rounds():
        assert generate(llm) == expected
        if not session.active:
            break
    assert not session.active
    assert all(layer.kv_cache is cache for layer, cache in zip(layers, before, strict=True))
    assert "a fault of the test" in read_snapshot(tmp_path / "engine-0.json").reason


def test_a_kind_that_is_not_known_is_timed_and_named(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vllm_nfp.adapter.state_layers.KNOWN_LAYERS", {"NewMixer": "a new one"})
    session = start()
    assert only_times(session)
    generate(llm)
    reason = read_snapshot(tmp_path / "engine-0.json").reason
    assert "QwenGatedDeltaNetAttention is unknown" in reason


def test_shapes_whose_states_do_not_fit_are_left_out_by_name(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    """A state takes 0.26 MiB, and a null one is kept beside them."""
    session = start(state_memory_mib=2)
    engine = engine_of(session)
    assert engine.positions(1, 32) == (1, 2, 3, 4, 5, 6)
    reason = engine.refusal(4, 32)
    assert "4 sequences x 2 positions" in reason and "state_memory_mib 2" in reason
    left = read_snapshot(tmp_path / "engine-0.json")
    assert any("state_memory_mib" in why for why in left.skipped_cells.values())


def state_layers(worker: Any) -> list[Any]:
    contexts = worker.vllm_config.compilation_config.static_forward_context
    return [layer for layer in contexts.values() if hasattr(layer, "num_spec")]
