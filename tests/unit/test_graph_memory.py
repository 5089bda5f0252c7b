"""Which shapes get CUDA graphs within the limits of memory, and which are left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter.dispatch import GraphRules
from vllm_nfp.adapter.graph_place import CaptureWatch, GraphPlace
from vllm_nfp.adapter.server_limits import ServerLimits
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe.availability import Availability
from vllm_nfp.probe.batch import BatchBuilder
from vllm_nfp.probe.cuda_graph import GraphPool
from vllm_nfp.probe.device_memory import DeviceMemory, largest_free_block
from vllm_nfp.probe.graph_cache import GraphCache, GraphRoom
from vllm_nfp.probe.graph_sizes import GraphSizes, largest_live_graph
from vllm_nfp.probe.limits import ShapeLimits
from vllm_nfp.probe.memory import GpuMemory, HostMemory
from vllm_nfp.probe.prepare import Preparer
from vllm_nfp.probe.shapes import PreparedShape, ShapeKey, ShapeTable, key_of
from vllm_nfp.probe.start import Start
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.types import RefusedForNowError, Shape, ShapeRefusedError

CPU = torch.device("cpu")
RULES = GraphRules(True, False, True, True, (1, 2, 4, 8, 16, 32), 64)
SERVER = ServerLimits(
    max_context=512,
    max_step_tokens=2048,
    max_batch_size=64,
    vocabulary=1 << 16,
    logit_bytes=2,
    hidden_size=256,
    widest_layer=1024,
    causal=True,
)


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


class Captures:
    """Captures that take memory from a book instead of a GPU."""

    def __init__(self, device: Device, pool: GraphPool) -> None:
        self._device = device
        self._pool = pool

    def warm_up(self, shape: PreparedShape, prove: bool) -> None:
        if self._device.error is not None:
            raise self._device.error
        shape.warm = True

    def capture_step(self, shape: PreparedShape) -> None:
        shape.step_graph = self._graph(shape, self._device.step_mib)
        self._device.captured.append((shape.batch.batch_size, shape.batch.positions_per_sequence))

    def capture_modules(self, shape: PreparedShape) -> None:
        shape.module_graph = self._graph(shape, 0.0)

    def _graph(self, shape: PreparedShape, mib: float) -> Any:
        device, pool = self._device, self._pool.place.pool
        device.driver += mib
        host = device.host_mib if mib else 0.0
        device.held += host
        grown = device.mib_per_token * shape.batch.placement.padded_tokens
        device.pools[pool] = max(device.pools.get(pool, 0.0), grown)

        def reset() -> None:
            device.driver -= mib
            device.held -= host

        return SimpleNamespace(reset=reset)


@dataclass
class Probe:
    """The parts that decide on graphs, over a GPU whose memory is a book."""

    shapes: ShapeTable
    graphs: GraphCache[ShapeKey]
    memory: GpuMemory
    availability: Availability
    preparer: Preparer
    start: Start

    def prepare(self, time_is_up: Callable[[], bool] = lambda: False) -> None:
        self.start.alone(time_is_up)

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        return self.availability.positions(batch_size, context)

    def ready(self, shape: Shape) -> bool:
        return self.shapes.is_complete(key_of(shape))

    def make_ready(self, shapes: Sequence[Shape]) -> None:
        self.preparer.make_ready(shapes)

    @property
    def graph_bytes(self) -> int:
        return self.memory.taken


def make_probe(
    device: Device,
    place: GraphPlace | None = SHARED,
    limit: int = 64,
    rules: GraphRules = RULES,
    live_tokens: int | None = None,
    **changes: Any,
) -> Probe:
    settings: dict[str, Any] = {"batch_sizes": (1, 4), "contexts": (64,), "max_positions": 8}
    config = ProbeConfig(**{**settings, **changes}, graph_memory_mib=limit)
    limits = ShapeLimits(SERVER, config.grid, (), rules, limit, on_gpu=True, head_in_graph=True)
    device.pools["shared"] = device.pool_mib
    memory = GpuMemory(device.reserved, device.free)
    fresh = itertools.count()

    def own_place(_: GraphPlace | None) -> GraphPlace:
        return GraphPlace(f"own {next(fresh)}", SimpleNamespace(cuda_stream=8), shared=False)

    pool = GraphPool(place, own_place)

    def give_back() -> None:
        for name in [name for name in device.pools if str(name).startswith("own")]:
            if not pool.exists or pool.place.pool != name:
                del device.pools[name]
        memory.count_reserve()

    batches = BatchBuilder(rules, [], [8], TokenPool(1000, 64, CPU, 0), CPU, True, 64)
    shapes = ShapeTable(batches.build, times_modules=True)
    graphs: GraphCache[ShapeKey] = GraphCache(
        limit << 20,
        memory,
        HostMemory(HOST_LIMIT_MIB << 20, device.resident),
        lambda key: shapes[key].give_up_graphs(),
        pool.forget_own,
    )
    availability = Availability(limits, shapes, graphs, alone=True)
    preparer = Preparer(availability, Captures(device, pool))
    effects = DeviceMemory(
        meter=lambda: GpuMemory(device.reserved, device.free),
        own_place=own_place,
        largest_free_block=lambda _: int(device.pool_mib) << 20,
        give_back=give_back,
    )
    if live_tokens is None:
        live_tokens = largest_live_graph(rules, decode_positions=1)
    sizes = GraphSizes(preparer, pool, effects, give_back, live_tokens)
    start = Start(config, preparer, sizes, memory, give_back)
    return Probe(shapes, graphs, memory, availability, preparer, start)


ALL = (1, 2, 3, 4, 5, 6, 8)


def ready_pair(probe: Probe, batch_size: int, positions: int) -> None:
    """What the prober does until a pair can run."""
    shapes = [Shape(batch_size, 64, 1), Shape(batch_size, 64, positions)]
    for _ in range(20):
        if all(map(probe.ready, shapes)):
            return
        probe.make_ready(shapes)
    pytest.fail("the pair is never ready")


def test_graphs_that_share_the_memory_of_vllms_add_no_activations() -> None:
    device = Device(pool_mib=300.0)
    probe = make_probe(device)
    probe.prepare()
    assert probe.positions(1, 64) == probe.positions(4, 64) == ALL
    assert device.pools == {"shared": 300.0}
    assert probe.graph_bytes == 8 << 20


@pytest.mark.parametrize("noise", [0.0, 300.0, -300.0])
def test_every_pair_gets_its_graphs_within_the_limit(noise: float) -> None:
    """All shapes need 112 MiB; never do more than 64 exist, whatever other processes take."""
    device = Device(step_mib=8.0, pool_mib=300.0)
    probe = make_probe(device)
    probe.prepare()
    device.noise = noise
    for _ in range(2):
        for b in (1, 4):
            for n in ALL[1:]:
                ready_pair(probe, b, n)
                assert device.driver <= 64
                assert probe.graph_bytes <= 64 << 20
    assert len(device.captured) > len(ALL) * 2, "nothing had to make room"


def test_at_the_hosts_limit_graphs_take_the_place_of_older_ones() -> None:
    """The device would hold all 14 shapes, the host six of 10 MiB each."""
    device = Device(step_mib=1.0, pool_mib=300.0, host_mib=10.0)
    probe = make_probe(device)
    probe.prepare()
    for b, n in itertools.product((1, 4), ALL[1:]):
        ready_pair(probe, b, n)
    assert device.resident() == 60 << 20
    assert len(probe.graphs) == 6


def test_a_host_that_grows_by_itself_leaves_a_pair_its_graphs() -> None:
    device = Device(step_mib=1.0, pool_mib=300.0, host_mib=100.0)
    probe = make_probe(device)
    probe.prepare()
    for b, n in itertools.product((1, 4), ALL[1:]):
        ready_pair(probe, b, n)
        assert len(probe.graphs) == 2


def test_graphs_of_a_pair_that_exceed_the_limit_leave_all_shapes_out_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Device(step_mib=40.0, pool_mib=300.0)
    probe = make_probe(device)
    probe.prepare()
    assert probe.positions(1, 64) == ()
    assert device.driver == 0.0, "graphs of no use are kept"
    assert "graphs of 2 shapes, 40 MiB each, do not fit graph_memory_mib 64" in caplog.text
    with pytest.raises(ShapeRefusedError, match="do not fit"):
        probe.make_ready([Shape(1, 64, 1), Shape(1, 64, 2)])


def test_no_memory_at_all_leaves_graphs_out() -> None:
    probe = make_probe(Device(pool_mib=300.0), limit=0)
    probe.prepare()
    assert probe.positions(1, 64) == ()


def test_without_vllms_pool_wide_shapes_are_left_out_and_their_trial_is_given_back() -> None:
    """32 tokens would take 58 MiB of activations, 16 take 29; half of the limit is for them."""
    device = Device(step_mib=1.0, mib_per_token=1.8)
    probe = make_probe(device, place=None)
    probe.prepare()
    assert probe.graphs.room.largest_tokens == 16
    assert probe.positions(1, 64) == ALL
    assert probe.positions(4, 64) == (1, 2), "4 x 3 tokens are padded to 18"
    for b, n in ((1, 8), (4, 4), (4, 2), (1, 2)):
        ready_pair(probe, b, n)
        assert probe.graph_bytes <= 64 << 20
    assert device.pools["shared"] == 0.0


def test_shapes_wider_than_vllms_graphs_are_tried_apart_from_its_pool() -> None:
    device = Device(step_mib=1.0, mib_per_token=4.0, pool_mib=64.0)
    probe = make_probe(device, live_tokens=16)
    probe.prepare()
    assert probe.graphs.room.largest_tokens == 16, "32 tokens take 128 MiB"
    assert device.pools == {"shared": 64.0}, "the trial has grown vLLM's pool"


def test_logits_that_no_memory_holds_leave_a_shape_out() -> None:
    probe = make_probe(Device(pool_mib=300.0), batch_sizes=(64,), max_positions=32)
    probe.prepare()
    # 2^16 ids of 2 bytes: 256 tokens, which fit no graph, make 32 MiB; 320 make 40.
    assert probe.positions(64, 64) == (1, 2, 3, 4)
    with pytest.raises(ShapeRefusedError, match="logits of 40 MiB without a CUDA graph"):
        probe.make_ready([Shape(64, 64, 1), Shape(64, 64, 5)])
    assert probe.graphs.limit == 32 << 20, "logits and graphs together exceed the limit"


def test_graphs_are_made_later_and_shapes_left_cold_by_the_start_are_left_out() -> None:
    """Warming up takes memory that a graph would find in its pool: only at the start."""
    device = Device(pool_mib=300.0)
    probe = make_probe(device)
    looks = iter([False] * 9 + [True] * 100)
    probe.prepare(time_is_up=lambda: next(looks))
    ready_pair(probe, 4, 1)
    ready_pair(probe, 1, 2)
    assert {(4, 1), (1, 1), (1, 2)} <= set(device.captured)
    with pytest.raises(ShapeRefusedError, match="was not warmed up at the start"):
        ready_pair(probe, 4, 8)


STABLE_ABI_FAILURE = (
    'torch_call_dispatcher( "aten::new_empty", "", stack.data(), 0) API call failed at ops.h'
)
OUT_OF_MEMORY = torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, RuntimeError(STABLE_ABI_FAILURE)])
def test_running_out_of_memory_leaves_shapes_out(error: RuntimeError) -> None:
    probe = make_probe(Device(pool_mib=300.0, error=error))
    probe.prepare()
    with pytest.raises(ShapeRefusedError, match="no GPU memory to run it in"):
        probe.make_ready([Shape(1, 64, 1), Shape(1, 64, 2)])


def test_another_error_at_warming_up_is_no_lack_of_memory() -> None:
    error = RuntimeError("illegal memory access")
    probe = make_probe(Device(pool_mib=300.0, error=error))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        probe.prepare()


def test_what_needs_no_graph_is_warmed_up_once_there_is_memory_again() -> None:
    """Only what is to be captured must have been warmed up at the start."""
    rules = replace(RULES, full_decode=False, full_mixed=False)
    device = Device(pool_mib=300.0, error=OUT_OF_MEMORY)
    probe = make_probe(device, batch_sizes=(64,), max_positions=4, limit=256, rules=rules)
    shapes = [Shape(64, 64, n) for n in (1, 4)]
    probe.prepare()
    with pytest.raises(RefusedForNowError):
        probe.make_ready(shapes)
    device.error = None
    while not all(map(probe.ready, shapes)):
        probe.make_ready(shapes)


def test_logits_outside_graphs_may_take_what_a_full_batch_takes() -> None:
    """With several ranks; a token's are 128 KiB here, and 64 sequences may run."""
    limits = ShapeLimits(
        SERVER, (1, 2, 3, 8), (), RULES, graph_memory_mib=1, on_gpu=True, head_in_graph=False
    )
    room = GraphRoom()
    assert limits.memory_missing(4, 8, room) is None
    assert limits.memory_missing(64, 2, room) is None
    assert "exceed those of a full batch" in str(limits.memory_missing(64, 3, room))


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
