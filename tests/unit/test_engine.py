"""The probe engine's bookkeeping, without a GPU and without a model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.config import ProbeConfig
from vllm_nfp.engine import engine as module
from vllm_nfp.engine import support
from vllm_nfp.engine.batch import (
    AttentionGroup,
    BlockReader,
    CellDoesNotFitError,
    ProbeBatch,
    TokenBag,
)
from vllm_nfp.engine.dispatch import Execution, GraphRules, Placement
from vllm_nfp.engine.engine import VllmProbeEngine
from vllm_nfp.engine.runners import step_of, view_of
from vllm_nfp.engine.versions import Mode
from vllm_nfp.probe import Shape, ShapeRefusedError

CPU = torch.device("cpu")
GROUP = AttentionGroup(builder=None, layer_names=("a", "b"), block_tokens=16, num_blocks=100)


def test_blocks_are_scattered_distinct_and_never_the_null_block() -> None:
    reader = BlockReader(GROUP, width=40, device=CPU, seed=3)
    table = reader.table(4, 100)  # 7 blocks each
    used = table[:, :7].flatten().tolist()
    assert len(set(used)) == 28
    assert all(0 < block < 100 for block in used)
    assert used != sorted(used)
    assert table[:, 7:].count_nonzero() == 0
    assert reader.table(4, 100) is table


def test_a_cell_larger_than_the_cache_is_refused() -> None:
    reader = BlockReader(GROUP, width=40, device=CPU, seed=0)
    reader.table(11, 16 * 9)
    with pytest.raises(CellDoesNotFitError, match="need 100 distinct KV blocks, the cache has 99"):
        reader.table(10, 16 * 10)


def test_the_bag_gives_live_tokens_once_it_has_them() -> None:
    bag = TokenBag(vocab_size=1000, size=64, device=CPU, seed=0)
    assert len(set(bag.draw(64).tolist())) > 32
    bag.add([7] * 40 + [5000, -1])
    bag.add([9] * 40)
    assert set(bag.draw(64).tolist()) == {7, 9}
    with pytest.raises(CellDoesNotFitError, match="exceed the bag"):
        bag.draw(65)


def test_a_batch_has_the_lengths_of_a_decode_step_and_marks_its_padding() -> None:
    placement = Placement(Execution.FULL, padded_tokens=9, padded_sequences=3)
    batch = ProbeBatch(2, 3, placement, widths=[40], device=CPU)
    reader = BlockReader(GROUP, width=40, device=CPU, seed=0)
    batch.fill(50, [reader], TokenBag(1000, 64, CPU, 0))
    assert batch.positions.tolist() == [50, 51, 52, 50, 51, 52, 0, 0, 0]
    assert batch.seq_lens.tolist() == [53, 53, 0]
    assert batch.query_start.tolist() == [0, 3, 6, 6]
    assert batch.is_padding.tolist() == [False] * 6 + [True] * 3
    assert set(batch.slots.tolist()) == {-1}
    assert batch.tables[0][2].count_nonzero() == 0
    batch.fill(20, [reader], TokenBag(1000, 64, CPU, 0))
    assert batch.positions[:3].tolist() == [20, 21, 22]


RULES = GraphRules(True, False, True, True, (1, 2, 4, 8, 16, 32), 64)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> VllmProbeEngine:
    """An engine whose captures take memory from a book instead of a GPU."""
    made = VllmProbeEngine.__new__(VllmProbeEngine)
    made._config = ProbeConfig(
        batch_sizes=(1, 4), contexts=(64,), max_positions=8, graph_memory_mib=100
    )
    made._rules, made._widths, made._groups, made._readers = RULES, [8], (), []
    made._causal = True
    made._max_len, made._max_tokens, made._max_seqs = 512, 2048, 64
    made._device, made._on_gpu, made._prepared = CPU, True, {}
    made._captured, made.graph_bytes, made._pool = False, 0, "pool 0"
    handles = iter(f"pool {i}" for i in range(1, 100))
    monkeypatch.setattr(module.torch.cuda, "graph_pool_handle", lambda: next(handles))
    return made


STABLE_ABI_FAILURE = (
    'torch_call_dispatcher( "aten::new_empty", "", stack.data(), 0) API call failed at ops.h'
)


OUT_OF_MEMORY = torch.OutOfMemoryError("no memory")


def book(
    engine: VllmProbeEngine,
    monkeypatch: pytest.MonkeyPatch,
    mib_per_token: float,
    out_of_memory: RuntimeError = OUT_OF_MEMORY,
) -> list[Any]:
    """The largest graph so far decides what the pool holds; graphs given up hold nothing."""
    pools: list[Any] = []

    def capture(prepared: Any) -> None:
        if mib_per_token * prepared.batch.tokens > 1000:
            raise out_of_memory
        prepared.step_graph = SimpleNamespace(tokens=prepared.batch.tokens)
        pools.append(engine._pool)

    def free_bytes() -> int:
        held = [p.step_graph.tokens for p in engine._prepared.values() if p.step_graph]
        return (1 << 40) - int(max(held, default=0) * mib_per_token * (1 << 20))

    monkeypatch.setattr(engine, "_capture", capture)
    monkeypatch.setattr(engine, "_free_bytes", free_bytes)
    return pools


def test_all_shapes_share_what_the_largest_graph_took(
    engine: VllmProbeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = book(engine, monkeypatch, mib_per_token=3.0)
    engine.prepare()
    assert engine.positions(1, 64) == engine.positions(4, 64) == (1, 2, 3, 4, 5, 6, 8)
    assert engine.graph_bytes == 96 << 20
    assert set(pools) == {"pool 0"}


def test_a_graph_over_the_limit_is_given_up_and_its_pool_with_it(
    engine: VllmProbeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pools = book(engine, monkeypatch, mib_per_token=5.0)
    engine.prepare()
    # 4 x 8 = 32 tokens would take 160 MiB; 4 x 6 = 24 fit no FULL graph and need none.
    assert engine.positions(4, 64) == (1, 2, 3, 4, 5, 6)
    assert engine.positions(1, 64) == (1, 2, 3, 4, 5, 6, 8)
    assert pools[0] == "pool 0"
    assert set(pools[1:]) == {"pool 1"}, "a pool that lost its last graph was used again"
    assert "1 of 14 shapes have no CUDA graph of their own" in caplog.text


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, RuntimeError(STABLE_ABI_FAILURE)])
def test_running_out_of_memory_leaves_shapes_out(
    engine: VllmProbeEngine, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    book(engine, monkeypatch, 10_000.0, error)
    engine.prepare()
    assert engine.positions(4, 64) == ()


def test_another_error_is_no_lack_of_memory(
    engine: VllmProbeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    book(engine, monkeypatch, 10_000.0, RuntimeError("illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.prepare()


def test_a_probe_without_memory_is_refused_and_no_fault(
    engine: VllmProbeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*_: object) -> None:
        raise RuntimeError(STABLE_ABI_FAILURE)

    monkeypatch.setattr(engine, "_launch", launch)
    with pytest.raises(ShapeRefusedError, match="new_empty"):
        engine.launch(Shape(1, 64, 2))


def config(**changes: Any) -> Any:
    """A configuration that the probe accepts, and changes to it by dotted name."""
    parallel = SimpleNamespace(
        tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1,
        decode_context_parallel_size=1, prefill_context_parallel_size=1,
        use_ubatching=False, enable_eplb=False,
    )  # fmt: skip
    model = SimpleNamespace(
        is_hybrid=False, is_attention_free=False, is_encoder_decoder=False,
        runner_type="generate", uses_mrope=False, supports_multimodal_inputs=False,
        enable_prompt_embeds=False, enable_sleep_mode=False,
    )  # fmt: skip
    offload = SimpleNamespace(offload_backend="auto", uva=SimpleNamespace(cpu_offload_gb=0))
    made = SimpleNamespace(
        parallel_config=parallel, model_config=model, offload_config=offload,
        kv_transfer_config=None, ec_transfer_config=None, lora_config=None,
    )  # fmt: skip
    for name, value in changes.items():
        owner, _, field = name.partition("__")
        setattr(getattr(made, owner) if field else made, field or owner, value)
    return made


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel_config__tensor_parallel_size": 2}, "--tensor-parallel-size 2"),
        ({"parallel_config__data_parallel_size": 4}, "--data-parallel-size 4"),
        ({"parallel_config__use_ubatching": True}, "--enable-dbo"),
        ({"parallel_config__enable_eplb": True}, "--enable-eplb"),
        ({"model_config__is_hybrid": True}, "recurrent (mamba) state"),
        ({"model_config__is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_config__runner_type": "pooling"}, "'pooling' decodes nothing"),
        ({"model_config__uses_mrope": True}, "rotary positions"),
        ({"model_config__supports_multimodal_inputs": True}, "--language-model-only"),
        ({"model_config__enable_sleep_mode": True}, "sleep mode"),
        ({"kv_transfer_config": object()}, "KV connector"),
        ({"ec_transfer_config": object()}, "encoder-cache connector"),
        ({"lora_config": object()}, "--enable-lora"),
        ({"offload_config__offload_backend": "prefetch"}, "offloaded"),
    ],
)
def test_what_a_probe_would_corrupt_is_refused_by_name(
    changes: dict[str, Any], reason: str
) -> None:
    found = support.refusal(config(**changes))
    assert found is not None
    assert reason in found


def test_a_plain_decoder_is_accepted() -> None:
    assert support.refusal(config()) is None


@pytest.mark.parametrize(
    ("version", "passive"),
    [("0.32.0", False), ("0.33.1", False), ("0.34.0", True), ("1.0.0", True), ("dev", True)],
)
def test_a_newer_vllm_is_only_watched(
    version: str, passive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.engine import versions

    monkeypatch.setattr(versions, "installed_version", lambda: version)
    decision = support.decide(config())
    assert decision.mode is (Mode.PASSIVE if passive else Mode.ACTIVE)
    if passive:
        assert version in decision.reason and "0.26 to 0.33" in decision.reason


def test_an_old_vllm_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_nfp.config import ConfigError
    from vllm_nfp.engine import versions

    monkeypatch.setattr(versions, "installed_version", lambda: "0.25.1")
    with pytest.raises(ConfigError, match=r"vLLM 0\.25\.1 is too old .* 0\.26 to 0\.33"):
        versions.require_supported()


def scheduled(counts: dict[str, int], new: int = 0, computed: tuple[int, ...] = ()) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens=counts,
        scheduled_new_reqs=[object()] * new,
        scheduled_encoder_inputs={},
        scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=list(computed)),
    )


def test_a_step_is_told_from_the_scheduler_output_alone() -> None:
    step = step_of(scheduled({"a": 1, "b": 4}, computed=(100, 200)), decode_positions=4)
    assert step is not None
    assert (step.batch_size, step.context, step.positions, step.decode) == (2, 150, 4, True)
    chunk = step_of(scheduled({"a": 64}, computed=(100,)), decode_positions=4)
    assert chunk is not None and not chunk.decode
    first = step_of(scheduled({"a": 1}, new=1), decode_positions=4)
    assert first is not None and not first.decode
    assert step_of(scheduled({}), decode_positions=4) is None


def test_an_unknown_runner_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="model runner int is unknown"):
        view_of(3)


def test_the_driver_and_the_processor_are_read_from_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.engine import environment

    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    monkeypatch.setattr(environment, "_DRIVER_FILE", file)
    assert environment._driver_version() == "580.159.04"
    file.write_text("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n")
    monkeypatch.setattr(environment, "_CPU_FILE", file)
    assert environment._cpu_name() == "A CPU @ 2 GHz"
    file.unlink()
    assert environment._driver_version() is None
    assert environment._cpu_name()


def test_the_model_is_told_by_whichever_names_its_configuration_has() -> None:
    from vllm_nfp.engine.environment import describe_model

    text = SimpleNamespace(n_layer=12, n_embd=768, n_head=12, vocab_size=True, num_local_experts=8)
    model = SimpleNamespace(
        hf_text_config=text, hf_config=SimpleNamespace(architectures=["GPT2LMHeadModel"])
    )
    found = describe_model("m", SimpleNamespace(model_config=model))
    assert (found.num_layers, found.hidden_size, found.num_attention_heads) == (12, 768, 12)
    assert (found.num_experts, found.vocab_size, found.head_dim) == (8, None, None)
    assert found.architecture == "GPT2LMHeadModel"
