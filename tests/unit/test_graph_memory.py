"""Which shapes get CUDA graphs within the limits of memory, and which are left out."""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.decoding import Bound
from vllm_nfp.adapter.dispatch import GraphRules
from vllm_nfp.adapter.graph_place import CaptureWatch, GraphPlace
from vllm_nfp.adapter.server_limits import ServerLimits
from vllm_nfp.config import ProbeConfig
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.probe.availability import Availability
from vllm_nfp.probe.batch import BatchBuilder
from vllm_nfp.probe.cuda_graph import GraphPool
from vllm_nfp.probe.device_memory import (
    DeviceMemory,
    GraphMemoryKeptError,
    inside,
    largest_free_block,
)
from vllm_nfp.probe.graph_cache import GraphCache, GraphRoom
from vllm_nfp.probe.graph_sizes import GraphSizes, largest_live_graph
from vllm_nfp.probe.limits import ShapeLimits
from vllm_nfp.probe.memory import GpuMemory, HostMemory, host_bytes
from vllm_nfp.probe.order import kinds_first, spread
from vllm_nfp.probe.prepare import Preparer
from vllm_nfp.probe.shapes import PreparedShape, ShapeKey, ShapeTable, key_of
from vllm_nfp.probe.start import Start
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.types import RefusedForNowError, Shape, ShapeRefusedError

CPU = torch.device("cpu")
RULES = GraphRules(True, False, True, True, CapturedGraphs((1, 2, 4, 8, 16, 32)), 64)
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
    burst: float = 0.0
    """Memory that another process takes while the first graph is captured."""
    pools: dict[Any, float] = field(default_factory=dict)
    captured: list[tuple[int, int]] = field(default_factory=list)
    ran: list[tuple[tuple[int, int], bool]] = field(default_factory=list)
    """Shapes that were warmed up, and whether after the start."""
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

    def warm_up(self, shape: PreparedShape, late: bool) -> None:
        if self._device.error is not None:
            raise self._device.error
        if not shape.warm:
            self._device.ran.append((key_of_shape(shape), late))
        if late and shape.full:
            self._grow(shape)
        shape.warm = True

    def capture_step(self, shape: PreparedShape) -> None:
        shape.step_graph = self._graph(shape, self._device.step_mib)
        self._device.captured.append(key_of_shape(shape))

    def capture_modules(self, shape: PreparedShape) -> None:
        shape.module_graph = self._graph(shape, 0.0)

    def _graph(self, shape: PreparedShape, mib: float) -> Any:
        device = self._device
        device.driver += mib
        if not device.captured:
            device.others += device.burst
        host = device.host_mib if mib else 0.0
        device.held += host
        self._grow(shape)

        def reset() -> None:
            device.driver -= mib
            device.held -= host

        return SimpleNamespace(reset=reset)

    def _grow(self, shape: PreparedShape) -> None:
        device, pool = self._device, self._pool.place.pool
        taken = device.mib_per_token * shape.batch.placement.padded_tokens
        device.pools[pool] = max(device.pools.get(pool, 0.0), taken)


def key_of_shape(shape: PreparedShape) -> tuple[int, int]:
    return shape.batch.batch_size, shape.batch.positions_per_sequence


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

    def ready_keys(self) -> set[ShapeKey]:
        return set(filter(self.shapes.is_complete, self.shapes))

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    waiting = serving

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
    alone: bool = True,
    **changes: Any,
) -> Probe:
    settings: dict[str, Any] = {"batch_sizes": (1, 4), "contexts": (64,), "max_positions": 8}
    config = ProbeConfig(**{**settings, **changes}, graph_memory_mib=limit)
    limits = ShapeLimits(SERVER, config.grid, (), rules, limit, on_gpu=True, head_in_graph=alone)
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
    availability = Availability(limits, shapes, graphs, alone)
    preparer = Preparer(availability, Captures(device, pool))
    effects = DeviceMemory(
        meter=lambda: GpuMemory(device.reserved, device.free),
        own_place=own_place,
        largest_free_block=lambda _: int(device.pool_mib) << 20,
        inside=lambda _: nullcontext(),
        beside=lambda _: nullcontext(),
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
    assert probe.positions(4, 64) == (), "6 positions need no graph, but a pair of them needs one"
    assert device.driver == 0.0, "graphs of no use are kept"
    assert "graphs of 2 shapes, 40 MiB each, do not fit graph_memory_mib 64" in caplog.text
    with pytest.raises(ShapeRefusedError, match="do not fit"):
        probe.make_ready([Shape(1, 64, 1), Shape(1, 64, 2)])


@pytest.mark.parametrize("burst", [60.0, 100.0])
def test_what_another_process_takes_during_the_first_look_is_not_a_graphs(burst: float) -> None:
    """Two servers that start together on one GPU: the probe of neither may stay off for it."""
    device = Device(step_mib=4.0, pool_mib=300.0, burst=burst)
    probe = make_probe(device)
    probe.prepare()
    assert probe.positions(1, 64) == probe.positions(4, 64) == ALL
    assert probe.graphs.room.shape_bytes == 4 << 20
    assert probe.graph_bytes == 16 << 20, "what the other process took counts as the probe's"
    for b, n in itertools.product((1, 4), ALL[1:]):
        ready_pair(probe, b, n)
        assert device.driver <= 64


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
    assert probe.positions(4, 64) == (1, 2, 4, 6), "4 x 3 tokens are padded to 18"
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


def test_a_graph_whose_logits_alone_are_too_large_is_not_tried() -> None:
    """256 tokens make 32 MiB of logits, half of the limit; 512 tokens make 64."""
    rules = replace(RULES, graphs=CapturedGraphs((*RULES.graphs.sizes, 64, 128, 256, 512)))
    device = Device(step_mib=1.0, mib_per_token=0.01, pool_mib=64.0)
    shapes = {"batch_sizes": (1, 64), "positions": (1, 2, 4, 8)}
    probe = make_probe(device, rules=rules, live_tokens=64, **shapes)
    probe.prepare()
    assert (64, 8) not in {key for key, _ in device.ran}
    assert probe.graphs.room.largest_tokens == 256
    assert probe.positions(64, 64) == (1, 2, 4)


def test_logits_that_no_memory_holds_leave_a_shape_out() -> None:
    probe = make_probe(Device(pool_mib=300.0), batch_sizes=(64,), max_positions=32)
    probe.prepare()
    # 2^16 ids of 2 bytes: 256 tokens, which fit no graph, make 32 MiB; 320 make 40.
    assert probe.positions(64, 64) == (1, 2, 3, 4)
    with pytest.raises(ShapeRefusedError, match="logits of 40 MiB without a CUDA graph"):
        probe.make_ready([Shape(64, 64, 1), Shape(64, 64, 5)])
    assert probe.graphs.limit == 32 << 20, "logits and graphs together exceed the limit"


PIECEWISE = (4, 6)
"""No multiple of 6 tokens from 24 to 32 is a size of vLLM's FULL graphs."""
PIECES = 30
"""More than the looks at the clock of a start."""


@pytest.mark.parametrize("looks", range(PIECES))
def test_whenever_the_start_ends_every_shape_is_made_ready_when_asked_for(looks: int) -> None:
    device = Device(pool_mib=300.0)
    probe = make_probe(device)
    clock = iter([False] * looks + [True] * 100)
    probe.prepare(time_is_up=lambda: next(clock))
    at_start = {key for key, _ in device.ran}
    assert (4, 8) in at_start, "the largest shape always runs"
    assert not any(late for _, late in device.ran)
    assert len(at_start) == 14 or looks < PIECES - 1
    every = set(itertools.product((1, 4), ALL))
    for b, n in sorted(every):
        if n > 1:
            ready_pair(probe, b, n)
            assert probe.graph_bytes <= 64 << 20
    assert {key for key, late in device.ran if late} == every - at_start
    assert set(device.captured) == every - {PIECEWISE}
    assert device.pools == {"shared": 300.0}


def test_a_run_after_the_start_takes_what_it_reserves_off_the_limit_of_graphs() -> None:
    """20 tokens need 10 MiB; vLLM's graphs have left 6 there."""
    device = Device(pool_mib=6.0)
    probe = make_probe(device)
    probe.prepare(time_is_up=lambda: True)
    before = probe.graphs.limit
    probe.make_ready([Shape(4, 64, 5)])
    assert device.ran[-1] == ((4, 5), True)
    assert probe.graphs.limit == before - (4 << 20)
    probe.make_ready([Shape(4, 64, 5)])
    assert probe.graphs.limit == before - (4 << 20), "it is taken off twice"
    assert probe.graph_bytes == 8 << 20, "the growth and a graph"


def test_activations_beyond_the_limit_end_captures_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As FP8 had it on H100 and H200: 256 MiB of 64 were taken, and nothing said so."""
    device = Device(pool_mib=0.0)
    probe = make_probe(device, limit=8)
    probe.prepare(time_is_up=lambda: True)
    with suppress(ShapeRefusedError):
        for _ in range(4):
            probe.make_ready([Shape(4, 64, 8)])
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line for line in said if "took 16 MiB for activations" in line] == said
    assert len(said) == 1
    assert probe.availability.memory_missing((4, 8)) is not None


def test_without_free_memory_nothing_is_made_until_there_is_some_again() -> None:
    device = Device(pool_mib=300.0)
    probe = make_probe(device)
    probe.prepare(time_is_up=lambda: True)
    device.others = (1 << 20) - 300.0 - device.driver - 63.0
    before = list(device.ran), list(device.captured), probe.graph_bytes
    with pytest.raises(RefusedForNowError, match="hardly any GPU memory is free"):
        probe.make_ready([Shape(1, 64, 1), Shape(1, 64, 2)])
    assert (device.ran, device.captured, probe.graph_bytes) == before
    device.others -= 20.0
    ready_pair(probe, 1, 2)


@dataclass
class TwoRanks:
    """What a rank asks, and the other one's answers: it can until its time is up."""

    answers: int
    asked: list[str] = field(default_factory=list)
    alone = False

    def all(self, possible: bool, topic: str) -> bool:
        self.asked.append(topic)
        self.answers -= 1
        return possible and self.answers >= 0


def start_together(
    answers: int, can_launch: Callable[[Shape], bool] = lambda _: True, **changes: Any
) -> tuple[Device, Probe, list[str]]:
    device, ranks = Device(step_mib=1.0, mib_per_token=0.1), TwoRanks(answers)
    probe = make_probe(device, place=None, limit=2048, alone=False, **changes)
    probe.start.together(ranks, can_launch, False, lambda: False)  # type: ignore[arg-type]
    return device, probe, ranks.asked


@pytest.mark.parametrize("answers", range(0, 30, 3))
def test_ranks_make_alike_shapes_ready_and_each_with_one_position(answers: int) -> None:
    device, probe, asked = start_together(answers)
    ready = probe.ready_keys()
    assert all((b, 1) in ready for b, _ in ready)
    # The last one may be refused once it has been captured: then it is given up on both.
    assert len(ready) <= len(device.ran) <= len(ready) + 1
    assert start_together(answers)[2] == asked, "another rank asks in another order"
    for b in (1, 4):
        found = probe.positions(b, 64)
        assert found == tuple(n for n in ALL if (b, n) in ready)
    assert len(ready) >= answers // 2 or answers > 2 * 14


@pytest.mark.parametrize(
    ("refused", "left"), [((4, 1), ()), ((4, 2), tuple(n for n in ALL if n != 2))]
)
def test_without_one_position_no_others_are_made_and_without_others_the_rest_is(
    refused: tuple[int, int], left: tuple[int, ...]
) -> None:
    device, probe, _ = start_together(1000, lambda shape: key_of(shape) != refused)
    assert probe.positions(4, 64) == left
    assert probe.positions(1, 64) == ALL
    assert {n for (b, n), _ in device.ran if b == 4} == set(left)


def test_ranks_whose_time_is_up_early_have_shapes_over_the_whole_table() -> None:
    sizes = (1, 2, 4, 8, 16, 32)
    rules = replace(RULES, graphs=CapturedGraphs((*RULES.graphs.sizes, 64, 128, 256, 512)))
    _, probe, _ = start_together(2 * 24, batch_sizes=sizes, max_positions=16, rules=rules)
    ready = probe.ready_keys()
    assert len(ready) == 24
    for b in sizes:
        assert len([n for n in probe.positions(b, 64) if n > 1]) >= 2
    assert {b for b, n in ready if n >= 8} >= {1, 8, 32}


STABLE_ABI_FAILURE = (
    'torch_call_dispatcher( "aten::new_empty", "", stack.data(), 0) API call failed at ops.h'
)
OUT_OF_MEMORY = torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, RuntimeError(STABLE_ABI_FAILURE)])
def test_a_lack_of_memory_puts_shapes_off_until_there_is_some_again(error: RuntimeError) -> None:
    device = Device(pool_mib=300.0, error=error)
    probe = make_probe(device)
    probe.prepare()
    with pytest.raises(RefusedForNowError):
        probe.make_ready([Shape(1, 64, 1), Shape(1, 64, 2)])
    device.error = None
    ready_pair(probe, 1, 2)


def test_another_error_at_warming_up_is_no_lack_of_memory() -> None:
    error = RuntimeError("illegal memory access")
    probe = make_probe(Device(pool_mib=300.0, error=error))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        probe.prepare()


def test_logits_outside_graphs_may_take_what_a_full_batch_takes() -> None:
    """With several ranks; a token's are 128 KiB here, and 64 sequences may run."""
    limits = ShapeLimits(
        SERVER, (1, 2, 3, 8), (), RULES, graph_memory_mib=1, on_gpu=True, head_in_graph=False
    )
    room = GraphRoom()
    assert limits.memory_missing(4, 8, room) is None
    assert limits.memory_missing(64, 2, room) is None
    assert "exceed those of a full batch" in str(limits.memory_missing(64, 3, room))


def test_block_tables_take_at_most_a_quarter_of_the_limit() -> None:
    """Of a long context and a large batch size they would take all of it: no graph would fit."""
    group: Any = SimpleNamespace(
        block_tokens=16, num_blocks=1 << 20, blocks_needed=lambda b, t: 0, bound=None
    )
    server = replace(SERVER, max_context=131072, max_batch_size=1024)
    limits = ShapeLimits(server, (1, 2), (group, group), RULES, 64, True, True)
    assert limits.table_widths == [8192, 8192]
    assert limits.cell_refusal(256, 1024) is None
    assert limits.cell_refusal(512, 1024) == (
        "block tables of 512 sequences, 32 MiB for --max-model-len 131072, exceed a quarter of "
        "graph_memory_mib 64"
    )
    assert replace(limits, on_gpu=False).cell_refusal(512, 1024) is None


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


def test_a_run_in_the_graphs_memory_waits_for_them_and_may_leave_nothing_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    live = [100]

    class Stream:
        cuda_stream = 7

        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

    def logged(name: str) -> Callable[[Any], Any]:
        @contextmanager
        def enter(what: Any) -> Iterator[None]:
            calls.append(f"{name} {getattr(what, 'id', None) or what.name}")
            yield
            calls.append(f"no {name}")

        return enter

    def snapshot() -> list[dict[str, Any]]:
        blocks = [{"size": size, "state": "active_allocated"} for size in live]
        return [
            {"segment_pool_id": (0, 1), "stream": 7, "blocks": blocks},
            {"segment_pool_id": (0, 0), "stream": 7, "blocks": [*blocks, *blocks]},
        ]

    monkeypatch.setattr(torch.cuda, "memory_snapshot", snapshot)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("serving"))
    monkeypatch.setattr(torch.cuda, "stream", logged("stream"))
    monkeypatch.setattr(torch.cuda, "use_mem_pool", logged("pool"))
    place = GraphPlace((0, 1), Stream("graphs"), shared=True)
    with inside(place):
        calls.append("run")
    assert calls == [
        "graphs waits for serving", "stream graphs", "pool (0, 1)", "run", "no pool", "no stream",
        "serving waits for graphs",
    ]  # fmt: skip
    with pytest.raises(GraphMemoryKeptError, match="a probe has left 12 bytes"), inside(place):
        live.append(12)
    calls.clear()
    with pytest.raises(torch.OutOfMemoryError), inside(place):
        raise OUT_OF_MEMORY
    assert calls[-1] == "serving waits for graphs"


def test_an_order_spreads_over_the_table_however_early_it_ends() -> None:
    grid = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
    keys = {(1 << i, n) for i in range(9) for n in grid if n << i <= 512}
    order = spread(keys)
    assert set(order) == keys and len(order) == len(keys)
    assert order == spread(sorted(keys)), "ranks may iterate over their sets in other orders"
    assert order[:2] == [(1, 1), (1, 32)]
    for end in range(2, len(order)):
        begun = set(order[:end])
        assert all((b, 1) in begun for b, _ in begun)
        # Few positions first would still be 4 octaves away from many after 16 shapes.
        reach = 9.0 if end < 8 else 2.3 if end < 16 else 1.5
        for b, n in keys:
            assert min(math.hypot(math.log2(b / c), math.log2(n / m)) for c, m in begun) < reach
    assert spread({(2, 1), (2, 4), (4, 4)}) == [(2, 1), (2, 4)], "no pair of 4 sequences can run"
    assert spread(()) == []


def test_pages_of_files_are_not_the_probes_memory(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmRSS:\t 900 kB\nRssAnon:\t 100 kB\nRssFile:\t 700 kB\nRssShmem:\t 28 kB\n")
    assert host_bytes(status) == 128 << 10
    assert host_bytes(tmp_path / "missing") == 0
    # Pages of its own: the allocator may give what this process has had before.
    before, taken = host_bytes(), mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    taken.write(b"x" * (32 << 20))
    assert host_bytes() - before > 24 << 20


def test_the_rank_with_the_fewest_blocks_decides_which_cells_are_probed() -> None:
    group: Any = SimpleNamespace(
        block_tokens=16, num_blocks=100, blocks_needed=lambda b, tokens: b * -(-tokens // 16),
        bound=None,
    )  # fmt: skip
    limits = ShapeLimits(SERVER, (1, 2), (group,), RULES, 64, True, True)
    assert limits.cell_refusal(4, 256) is None
    fewer = replace(limits, fewest_blocks=(60,))
    assert fewer.cell_refusal(4, 256) == "68 distinct KV blocks are needed, the cache has 59"


@pytest.mark.parametrize(
    ("most", "positions", "refused"),
    [(1, (1,), True), (4, (1, 2, 4), False), (512, (1, 2, 4, 8), False)],
)
def test_positions_that_a_backend_takes_for_a_prompt_are_not_probed(
    most: int, positions: tuple[int, ...], refused: bool
) -> None:
    """Seen with Triton's kernels on a GPU: their builder lets no prompt be captured."""
    groups = tuple(
        AttentionGroup(None, ("a",), 16, 1 << 20, bound) for bound in (None, Bound(most, "A", True))
    )
    limits = ShapeLimits(SERVER, (1, 2, 4, 8), groups, RULES, 64, True, True)
    refusal = limits.cell_refusal(1, 64)
    expected = (
        "the attention backend (A) decodes at most 1 position of a sequence in a step and takes 2 "
        "for a prompt: serve with 1 or more speculative tokens"
    )
    assert refusal == (expected if refused else None)
    assert limits.positions(1, 64, lambda batch_size, n: True) == positions


def test_where_drafts_change_nothing_another_backend_is_advised() -> None:
    group = AttentionGroup(None, ("a",), 16, 1 << 20, Bound(1, "A", False))
    refusal = ShapeLimits(SERVER, (1, 2), (group,), RULES, 64, True, True).cell_refusal(1, 64)
    assert refusal is not None and refusal.endswith("serve with another --attention-backend")


def test_each_number_of_positions_runs_first_with_the_fewest_sequences() -> None:
    """Kernels that Triton compiles for it are then there before the first request."""
    keys = [(1, 1), (1, 32), (64, 1), (64, 8), (8, 1), (8, 3), (1, 3), (8, 32)]
    found = kinds_first(keys)
    assert found[:4] == [(1, 1), (1, 32), (64, 8), (1, 3)]
    assert found[4:] == [(64, 1), (8, 1), (8, 3), (8, 32)]
