"""The probe engine's bookkeeping, without a GPU and without a model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter import support
from vllm_nfp.adapter.dispatch import Execution, GraphRules, Placement
from vllm_nfp.adapter.graph_place import CaptureWatch, GraphPlace
from vllm_nfp.adapter.ranks import Alone
from vllm_nfp.adapter.runner_v1 import V1Runner
from vllm_nfp.adapter.runner_v2 import V2Runner
from vllm_nfp.adapter.runners import view_of
from vllm_nfp.adapter.steps import StepLimits, step_of
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe import engine as module
from vllm_nfp.probe.batch import (
    AttentionGroup,
    BlockReader,
    CellDoesNotFitError,
    ProbeBatch,
    TokenBag,
)
from vllm_nfp.probe.engine import VllmProbeEngine
from vllm_nfp.probe.memory import GpuMemory, HostMemory, Shelf, largest_free_block
from vllm_nfp.types import RefusedForNowError, Shape, ShapeRefusedError

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
    again = torch.full((6, 40), 7, dtype=torch.int32)
    reader.fill(again, 4, 100)
    assert torch.equal(again[:4], table)
    assert again[4:].count_nonzero() == 0, "rows of an earlier shape are left"


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


def test_draws_of_one_number_begin_alike_and_others_spread_over_the_bag() -> None:
    bag = TokenBag(1 << 30, 64, CPU, 0)
    assert bag.draw(32, 5)[:4].tolist() == bag.draw(4, 5).tolist()
    begins = {int(bag.draw(1, number)) for number in range(64)}
    assert len(begins) > 48, "hardly any place is drawn twice"
    assert begins != {int(TokenBag(1 << 30, 64, CPU, 1).draw(1, number)) for number in range(64)}


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


@dataclass
class Device:
    """A GPU whose memory is a book: graphs take from the driver, activations from their pool."""

    step_mib: float = 4.0
    mib_per_token: float = 0.5
    host_mib: float = 0.0
    """Of the host's memory for a shape's graphs, which the C library never gives back."""
    most_held: float = 0.0
    held: float = 0.0
    """Of the host's memory, by graphs that exist."""
    pool_mib: float = 0.0
    """What the pool of vLLM's graphs holds."""
    driver: float = 0.0
    others: float = 0.0
    noise: float = 0.0
    """Memory that another process takes at each look."""
    pools: dict[Any, float] = field(default_factory=dict)
    captured: list[tuple[int, int]] = field(default_factory=list)
    error: RuntimeError | None = None

    def reserved(self) -> int:
        return int(sum(self.pools.values()) * (1 << 20))

    def resident(self) -> int:
        self.most_held = max(self.most_held, self.held)
        return int(self.most_held * (1 << 20))

    def free(self) -> int:
        self.others += self.noise
        return (1 << 40) - self.reserved() - int((self.driver + self.others) * (1 << 20))


HOST_LIMIT_MIB = 64
SHARED = GraphPlace("shared", SimpleNamespace(cuda_stream=7), shared=True)


def make_engine(
    monkeypatch: pytest.MonkeyPatch,
    device: Device,
    place: GraphPlace | None = SHARED,
    limit: int = 64,
    **changes: Any,
) -> VllmProbeEngine:
    """An engine whose captures take memory from a book instead of a GPU."""
    made = VllmProbeEngine.__new__(VllmProbeEngine)
    settings: dict[str, Any] = {"batch_sizes": (1, 4), "contexts": (64,), "max_positions": 8}
    made._config = ProbeConfig(**{**settings, **changes}, graph_memory_mib=limit)
    made._graphs = made._config.graph_limits()
    made._rules, made._widths, made._groups, made._readers = RULES, [8], (), []
    made._causal, made._capture_head, made.timed_layers = True, True, (object(),)
    made._max_len, made._max_tokens, made._max_seqs = 512, 2048, 64
    made._device, made._on_gpu, made._prepared, made._tables = CPU, True, {}, None
    made._place, made._refused, made._shelf = place, {}, Shelf(limit << 20)
    made._started, made._ranks, made._capture_ended = False, Alone(), False
    made._proofs, made._proven = [], set()
    made._most_graph_tokens, made._pool_block, made._pool_allowance = None, 0, 0
    model = SimpleNamespace(get_vocab_size=lambda: 1 << 16, dtype=torch.bfloat16)
    made._view = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model))
    made._view.decode_positions = 1
    device.pools["shared"] = device.pool_mib
    made.memory = GpuMemory(device.reserved, device.free)
    made._host = HostMemory(HOST_LIMIT_MIB << 20, device.resident)
    fresh = itertools.count()

    def own(*_: Any) -> GraphPlace:
        name = f"own {next(fresh)}"
        return GraphPlace(name, SimpleNamespace(cuda_stream=8), shared=False)

    def graph(prepared: Any, mib: float) -> Any:
        pool = made._graph_place().pool
        device.driver += mib
        host = device.host_mib if mib else 0.0
        device.held += host
        grown = device.mib_per_token * prepared.batch.placement.padded_tokens
        device.pools[pool] = max(device.pools.get(pool, 0.0), grown)

        def reset() -> None:
            device.driver -= mib
            device.held -= host

        return SimpleNamespace(reset=reset)

    def capture_step(prepared: Any) -> None:
        prepared.step_graph = graph(prepared, device.step_mib)
        key = (prepared.batch.batch_size, prepared.batch.positions_per_sequence)
        device.captured.append(key)

    def capture_modules(prepared: Any) -> None:
        prepared.module_graph = graph(prepared, 0.0)

    def warm_up(prepared: Any) -> None:
        if device.error is not None:
            raise device.error
        prepared.warm = True

    def give_back_cache() -> None:
        for pool in [p for p in device.pools if str(p).startswith("own")]:
            if made._place is None or made._place.pool != pool:
                del device.pools[pool]
        made.memory.count_reserve()

    monkeypatch.setattr(module, "own_place", own)
    monkeypatch.setattr(module, "largest_free_block", lambda _: int(device.pool_mib) << 20)
    monkeypatch.setattr(module.GpuMemory, "of", lambda _: GpuMemory(device.reserved, device.free))
    monkeypatch.setattr(made, "_capture_step", capture_step)
    monkeypatch.setattr(made, "_capture_modules", capture_modules)
    monkeypatch.setattr(made, "_warm_up", warm_up)
    monkeypatch.setattr(made, "give_back_cache", give_back_cache)
    monkeypatch.setattr(made, "_blocks_missing", lambda *_: None)
    return made


ALL = (1, 2, 3, 4, 5, 6, 8)


def ready_pair(engine: VllmProbeEngine, batch_size: int, positions: int) -> None:
    """What the prober does until a pair can run."""
    shapes = [Shape(batch_size, 64, 1), Shape(batch_size, 64, positions)]
    for _ in range(20):
        if all(map(engine.ready, shapes)):
            return
        engine.make_ready(shapes)
    pytest.fail("the pair is never ready")


def test_graphs_that_share_the_memory_of_vllms_add_no_activations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(pool_mib=300.0)
    engine = make_engine(monkeypatch, device)
    engine.prepare()
    assert engine.positions(1, 64) == engine.positions(4, 64) == ALL
    assert device.pools == {"shared": 300.0}
    assert engine.graph_bytes == 8 << 20


@pytest.mark.parametrize("noise", [0.0, 300.0, -300.0])
def test_every_pair_gets_its_graphs_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    """All shapes need 112 MiB; never do more than 64 exist, whatever other processes take."""
    device = Device(step_mib=8.0, pool_mib=300.0)
    engine = make_engine(monkeypatch, device)
    engine.prepare()
    device.noise = noise
    for _ in range(2):
        for b in (1, 4):
            for n in ALL[1:]:
                ready_pair(engine, b, n)
                assert device.driver <= 64
                assert engine.graph_bytes <= 64 << 20
    assert len(device.captured) > len(ALL) * 2, "nothing had to make room"


def test_at_the_hosts_limit_graphs_take_the_place_of_older_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device would hold all 14 shapes, the host six of 10 MiB each."""
    device = Device(step_mib=1.0, pool_mib=300.0, host_mib=10.0)
    engine = make_engine(monkeypatch, device)
    engine.prepare()
    for b, n in itertools.product((1, 4), ALL[1:]):
        ready_pair(engine, b, n)
    assert device.resident() == 60 << 20
    assert len(engine._shelf) == 6


def test_a_host_that_grows_by_itself_leaves_a_pair_its_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(step_mib=1.0, pool_mib=300.0, host_mib=100.0)
    engine = make_engine(monkeypatch, device)
    engine.prepare()
    for b, n in itertools.product((1, 4), ALL[1:]):
        ready_pair(engine, b, n)
        assert len(engine._shelf) == 2


def test_graphs_of_a_pair_that_exceed_the_limit_leave_all_shapes_out_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(step_mib=40.0, pool_mib=300.0)
    engine = make_engine(monkeypatch, device)
    engine.prepare()
    assert engine.positions(1, 64) == ()
    assert device.driver == 0.0, "graphs of no use are kept"
    assert "graphs of 2 shapes, 40 MiB each, do not fit graph_memory_mib 64" in caplog.text
    with pytest.raises(ShapeRefusedError, match="do not fit"):
        engine.make_ready([Shape(1, 64, 1), Shape(1, 64, 2)])


def test_no_memory_at_all_leaves_graphs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(monkeypatch, Device(pool_mib=300.0), limit=0)
    engine.prepare()
    assert engine.positions(1, 64) == ()


def test_without_vllms_pool_wide_shapes_are_left_out_and_their_trial_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """32 tokens would take 58 MiB of activations, 16 take 29; half of the limit is for them."""
    device = Device(step_mib=1.0, mib_per_token=1.8)
    engine = make_engine(monkeypatch, device, place=None)
    engine.prepare()
    assert engine._most_graph_tokens == 16
    assert engine.positions(1, 64) == ALL
    assert engine.positions(4, 64) == (1, 2), "4 x 3 tokens are padded to 18"
    for b, n in ((1, 8), (4, 4), (4, 2), (1, 2)):
        ready_pair(engine, b, n)
        assert engine.graph_bytes <= 64 << 20
    assert device.pools["shared"] == 0.0


def test_shapes_wider_than_vllms_graphs_are_tried_apart_from_its_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(step_mib=1.0, mib_per_token=4.0, pool_mib=64.0)
    engine = make_engine(monkeypatch, device)
    monkeypatch.setattr(engine, "_largest_live_graph", lambda: 16)
    engine.prepare()
    assert engine._most_graph_tokens == 16, "32 tokens take 128 MiB"
    assert device.pools == {"shared": 64.0}, "the trial has grown vLLM's pool"


def test_logits_that_no_memory_holds_leave_a_shape_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(monkeypatch, Device(pool_mib=300.0), batch_sizes=(64,), max_positions=32)
    engine.prepare()
    # 2^16 ids of 2 bytes: 256 tokens, which fit no graph, make 32 MiB; 320 make 40.
    assert engine.positions(64, 64) == (1, 2, 3, 4)
    with pytest.raises(ShapeRefusedError, match="logits of 40 MiB without a CUDA graph"):
        engine.make_ready([Shape(64, 64, 1), Shape(64, 64, 5)])
    assert engine._shelf.limit == 32 << 20, "logits and graphs together exceed the limit"


def test_graphs_are_made_later_and_shapes_left_cold_by_the_start_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Warming up takes memory that a graph would find in its pool: only at the start."""
    device = Device(pool_mib=300.0)
    engine = make_engine(monkeypatch, device)
    looks = iter([False] * 9 + [True] * 100)
    engine.prepare(time_is_up=lambda: next(looks))
    ready_pair(engine, 4, 1)
    ready_pair(engine, 1, 2)
    assert {(4, 1), (1, 1), (1, 2)} <= set(device.captured)
    with pytest.raises(ShapeRefusedError, match="was not warmed up at the start"):
        ready_pair(engine, 4, 8)


STABLE_ABI_FAILURE = (
    'torch_call_dispatcher( "aten::new_empty", "", stack.data(), 0) API call failed at ops.h'
)
OUT_OF_MEMORY = torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, RuntimeError(STABLE_ABI_FAILURE)])
def test_running_out_of_memory_leaves_shapes_out(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    engine = make_engine(monkeypatch, Device(pool_mib=300.0, error=error))
    monkeypatch.setattr(engine, "_learn_sizes", lambda *_: None)
    engine.prepare()
    with pytest.raises(ShapeRefusedError, match="no GPU memory to run it in"):
        engine.make_ready([Shape(1, 64, 1), Shape(1, 64, 2)])


def test_the_pool_and_stream_of_most_captures_are_found() -> None:
    watch = CaptureWatch()
    assert watch.place is None
    main, draft = SimpleNamespace(cuda_stream=1), SimpleNamespace(cuda_stream=2)
    for pool, stream in (((0, 1), draft), ((0, 1), main), ((0, 1), main), (None, draft)):
        watch.note(pool, stream)
    place = watch.place
    assert place is not None
    assert (place.pool, place.stream, place.shared) == ((0, 1), main, True)


def test_only_the_pools_own_free_blocks_on_its_stream_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def segment(pool: tuple[int, int], stream: int, *blocks: tuple[int, str]) -> dict[str, Any]:
        made = [{"size": size, "state": state} for size, state in blocks]
        return {"segment_pool_id": pool, "stream": stream, "blocks": made}

    found = [
        segment((0, 1), 7, (10, "inactive"), (99, "active_allocated")),
        segment((0, 1), 7, (30, "inactive")),
        segment((0, 1), 8, (500, "inactive")),
        segment((0, 0), 7, (400, "inactive")),
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: found)
    place = GraphPlace((0, 1), SimpleNamespace(cuda_stream=7), shared=True)
    assert largest_free_block(place) == 30


def test_another_error_at_warming_up_is_no_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = RuntimeError("illegal memory access")
    engine = make_engine(monkeypatch, Device(pool_mib=300.0, error=error))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.prepare()


def test_a_probe_without_memory_is_refused_and_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine(monkeypatch, Device())

    def launch(*_: object) -> None:
        raise RuntimeError(STABLE_ABI_FAILURE)

    monkeypatch.setattr(engine, "_inputs", launch)
    with pytest.raises(ShapeRefusedError, match="new_empty"):
        engine.launch(Shape(1, 64, 2))
    assert not engine.can_launch(Shape(1, 64, 2))


@pytest.mark.parametrize(
    ("error", "for_now"),
    [(OUT_OF_MEMORY, True), (CellDoesNotFitError("too few blocks"), False)],
)
def test_memory_may_be_there_again_and_kv_blocks_never_are(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, for_now: bool
) -> None:
    engine = make_engine(monkeypatch, Device())

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine, "_inputs", fail)
    with pytest.raises(ShapeRefusedError) as caught:
        engine.launch(Shape(1, 64, 2))
    assert isinstance(caught.value, RefusedForNowError) is for_now


def test_what_is_still_running_is_refused_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(monkeypatch, Device())
    engine._made(1, 2).busy = True
    with pytest.raises(RefusedForNowError, match="still running"):
        engine.launch(Shape(1, 64, 2))


def test_what_needs_no_graph_is_warmed_up_once_there_is_memory_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only what is to be captured must have been warmed up at the start."""
    device = Device(pool_mib=300.0)
    engine = make_engine(monkeypatch, device, batch_sizes=(64,), max_positions=4, limit=256)
    shapes = [Shape(64, 64, n) for n in (1, 4)]
    warm_up, short = engine._warm_up, [True]

    def try_warm_up(prepared: Any) -> None:
        if short[0]:
            raise OUT_OF_MEMORY
        warm_up(prepared)

    monkeypatch.setattr(engine, "_warm_up", try_warm_up)
    engine._rules = replace(RULES, full_decode=False, full_mixed=False)
    engine.prepare()
    with pytest.raises(RefusedForNowError):
        engine.make_ready(shapes)
    short[0] = False
    while not all(map(engine.ready, shapes)):
        engine.make_ready(shapes)


def test_logits_outside_graphs_may_take_what_a_full_batch_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With several ranks; a token's are 128 KiB here, and 64 sequences may run."""
    engine = make_engine(monkeypatch, Device(pool_mib=64.0), limit=1)
    engine._ranks, engine._capture_head = SimpleNamespace(alone=False), False
    assert engine._memory_missing(4, 8) is None
    assert engine._memory_missing(64, 2) is None
    assert "exceed those of a full batch" in str(engine._memory_missing(64, 3))


def config(**changes: Any) -> Any:
    """A configuration that the probe accepts, and changes to it by dotted name."""
    parallel = SimpleNamespace(
        tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1,
        decode_context_parallel_size=1, prefill_context_parallel_size=1,
        use_ubatching=False, enable_eplb=False, nnodes=1, rank=0,
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
        ({"parallel_config__pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"parallel_config__decode_context_parallel_size": 2}, "--decode-context-parallel-size 2"),
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
    assert support.decide(config(**changes), passive=True).mode is Mode.PASSIVE
    found = support.refusal(config(**changes))
    assert found is not None
    assert reason in found


def test_a_plain_decoder_is_accepted() -> None:
    assert support.refusal(config()) is None


@pytest.mark.parametrize(
    ("executor", "accepted"), [("mp", True), ("uni", True), ("external_launcher", False)]
)
def test_tensor_parallel_ranks_are_accepted_where_one_engine_has_them(
    executor: str, accepted: bool
) -> None:
    made = config(
        parallel_config__tensor_parallel_size=2,
        parallel_config__distributed_executor_backend=executor,
    )
    reason = support.refusal(made)
    assert (reason is None) == accepted
    assert accepted or f"--distributed-executor-backend {executor}" in str(reason)


@pytest.mark.parametrize(
    ("version", "passive"),
    [("0.32.0", False), ("0.33.1", False), ("0.34.0", True), ("1.0.0", True), ("dev", True)],
)
def test_a_newer_vllm_is_only_watched(
    version: str, passive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.adapter import versions

    monkeypatch.setattr(versions, "installed_version", lambda: version)
    decision = support.decide(config())
    assert decision.mode is (Mode.PASSIVE if passive else Mode.ACTIVE)
    if passive:
        assert version in decision.reason and "0.26 to 0.33" in decision.reason


def test_an_old_vllm_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_nfp.adapter import versions
    from vllm_nfp.config import ConfigError

    monkeypatch.setattr(versions, "installed_version", lambda: "0.25.1")
    with pytest.raises(ConfigError, match=r"vLLM 0\.25\.1 is too old .* 0\.26 to 0\.33"):
        versions.require_supported()


LIMITS = StepLimits(sequences=256, tokens=8192)


def scheduled(counts: dict[str, int], new: int = 0, computed: tuple[int, ...] = ()) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
        scheduled_new_reqs=[object()] * new,
        scheduled_encoder_inputs={},
        preempted_req_ids=None,
        scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=list(computed)),
    )


def test_a_step_is_told_from_the_scheduler_output_alone() -> None:
    step = step_of(
        scheduled({"a": 1, "b": 4}, computed=(100, 200)), decode_positions=4, limits=LIMITS
    )
    assert step is not None
    assert (step.batch_size, step.context, step.positions, step.decode) == (2, 150, 4, True)
    chunk = step_of(scheduled({"a": 64}, computed=(100,)), decode_positions=4, limits=LIMITS)
    assert chunk is not None and not chunk.decode
    first = step_of(scheduled({"a": 1}, new=1), decode_positions=4, limits=LIMITS)
    assert first is not None and not first.decode
    assert step_of(scheduled({}), decode_positions=4, limits=LIMITS) is None


def test_an_unknown_runner_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="model runner int is unknown"):
        view_of(3)


def buffer(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(("version", "marks"), [("0.29.0", False), ("0.32.0", True)])
def test_the_views_know_the_buffers_that_piecewise_graphs_read(
    version: str, marks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.adapter import versions

    monkeypatch.setattr(versions, "installed_version", lambda: version)
    tables = [SimpleNamespace(slot_mapping=SimpleNamespace(gpu=buffer(i))) for i in (5, 6)]
    calls: list[Any] = []
    v1 = SimpleNamespace(
        input_ids=SimpleNamespace(gpu=buffer(1)), positions=buffer(2), is_padding=buffer(3),
        input_batch=SimpleNamespace(block_table=SimpleNamespace(block_tables=tables)),
        model=lambda **inputs: calls.append(("v1", inputs)),
    )  # fmt: skip
    found = V1Runner(v1).step_buffers()
    assert [int(tensor) for tensor in found.tensors] == [1, 2, 5, 6, *([3] if marks else [])]
    v2 = SimpleNamespace(
        input_buffers=SimpleNamespace(
            input_ids=buffer(1), positions=buffer(2), is_padding=buffer(3)
        ),
        block_tables=SimpleNamespace(slot_mappings=torch.stack([buffer(5), buffer(6)])),
        model="model",
        cudagraph_manager=SimpleNamespace(run_pw_graph=lambda *given: calls.append(("v2", *given))),
    )
    assert [int(tensor) for tensor in V2Runner(v2).step_buffers().tensors] == [1, 2, 5, 6, 3]
    for view in (V1Runner(v1), V2Runner(v2)):
        view.run_piecewise({"input_ids": 4})
    assert calls == [("v1", {"input_ids": 4}), ("v2", "model", {"input_ids": 4})]


def test_the_driver_and_the_processor_are_read_from_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.adapter import environment

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
    from vllm_nfp.adapter.environment import describe_model

    text = SimpleNamespace(n_layer=12, n_embd=768, n_head=12, vocab_size=True, num_local_experts=8)
    model = SimpleNamespace(
        hf_text_config=text, hf_config=SimpleNamespace(architectures=["GPT2LMHeadModel"])
    )
    found = describe_model("m", SimpleNamespace(model_config=model))
    assert (found.num_layers, found.hidden_size, found.num_attention_heads) == (12, 768, 12)
    assert (found.num_experts, found.vocab_size, found.head_dim) == (8, None, None)
    assert found.architecture == "GPT2LMHeadModel"
