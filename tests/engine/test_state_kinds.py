"""Models with other kinds of recurrent state than Qwen3-Next's are probed beside their traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kinds
import pytest
import torch
from parts import attaching, engine_of, publisher_of, started_engine
from test_states import configure, outputs_without_probe, serve_beside_pairs

from vllm_nfp.adapter.engines import worker_of
from vllm_nfp.adapter.state_kinds import KNOWN_LAYERS
from vllm_nfp.probe.kv_check import wait_for
from vllm_nfp.types import Shape, State

pytestmark = pytest.mark.engine

MODELS = [
    pytest.param((kinds.nemotron, "Mamba 2", {"dense_ffn"}), id="nemotron-h"),
    pytest.param((kinds.lfm2, "short convolutions", {"dense_ffn", "moe_ffn"}), id="lfm2"),
    pytest.param(
        (kinds.granite, "Mamba 2", {"moe_ffn"}), id="granite-4", marks=pytest.mark.thorough
    ),
    pytest.param(
        (kinds.falcon, "Mamba 2", {"dense_ffn"}), id="falcon-h1", marks=pytest.mark.thorough
    ),
]


@pytest.fixture(scope="module", params=MODELS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, str, set[str]]]:
    """An engine, the kind of its state, and the modules of its feed-forward layers."""
    write, kind, blocks = request.param
    model = write(tmp_path_factory.mktemp("states"))
    with started_engine(
        model, dtype="bfloat16", max_num_seqs=8, distributed_executor_backend="uni",
    ) as started:  # fmt: skip
        yield started, kind, blocks


@pytest.fixture
def start(served: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    with attaching() as begin:
        yield lambda **changes: begin(configure(tmp_path, **changes), worker_of(served[0]))


def state_layers(llm: Any) -> list[Any]:
    contexts = worker_of(llm).vllm_config.compilation_config.static_forward_context
    return [layer for layer in contexts.values() if type(layer).__name__ in KNOWN_LAYERS]


def test_outputs_stay_while_states_are_probed(served: Any, start: Callable[..., Any]) -> None:
    llm, kind, blocks = served
    expected = outputs_without_probe(llm)
    before = [layer.kv_cache for layer in state_layers(llm)]
    session = start()
    serve_beside_pairs(llm, session, expected)
    layers = state_layers(llm)
    assert all(layer.kv_cache is cache for layer, cache in zip(layers, before, strict=True))
    publisher_of(session).process()
    found = publisher_of(session).snapshot()
    assert found.state is not State.DISABLED, found.reason
    measured = {row.module for row in found.curves if row.samples}
    assert measured == {"attention", "linear_attention", "model", *blocks}
    assert {group.kind for group in engine_of(session).states.groups} == {kind}


UNTOUCHED = 0x3C
"""A byte; four of them are a small number in float32, two in bfloat16. Zeros count as written: on a
CPU vLLM's short convolution leaves rows of drafts as memory was, and layers behind it may see only
zeros."""


def states_written(states: torch.Tensor) -> int:
    """How many states, [states, ...], are no longer as the test has filled them."""
    same = torch.full((states.element_size(),), UNTOUCHED, dtype=torch.uint8).view(states.dtype)
    return int((states != same).flatten(1).any(1).sum())


def test_n_positions_write_n_states_for_each_sequence_and_layer(
    served: Any, start: Callable[..., Any]
) -> None:
    layers = state_layers(served[0])
    engine = engine_of(start(capture_seconds=1.0))
    own = engine.states
    for batch_size, positions in ((1, 1), (4, 1), (1, 4), (4, 8)):
        with torch.inference_mode():
            own._memory.fill_(UNTOUCHED)
        ticket = engine.launch(Shape(batch_size, 32, positions))
        wait_for(partial(engine.poll, ticket))
        with own.lent(batch_size, positions):
            written = [states_written(layer.kv_cache[-1][1:]) for layer in layers]
        assert written == [batch_size * positions] * len(layers), (batch_size, positions)
