"""The probe engine over a vLLM model runner."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch

from vllm_nfp.adapter import bindings
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.dispatch import Execution, Placement, place
from vllm_nfp.adapter.graph_place import GraphPlace, own_place
from vllm_nfp.adapter.graph_rules import graph_rules
from vllm_nfp.adapter.layers import find_decoder_layers, sample_layers
from vllm_nfp.adapter.ranks import Alone, CaptureEndedError, Ranks
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.config import GraphLimits, ProbeConfig
from vllm_nfp.faults import maybe_fail
from vllm_nfp.probe.batch import (
    AttentionGroup,
    BlockReader,
    CellDoesNotFitError,
    ProbeBatch,
    TokenBag,
    own_groups,
)
from vllm_nfp.probe.forward import Forward, Graph, ModuleMarks, StepMarks
from vllm_nfp.probe.kv_proof import KvCacheWrittenError, Proof, Prover, caches_of, checksum
from vllm_nfp.probe.memory import (
    GpuMemory,
    HostMemory,
    Shelf,
    is_out_of_memory,
    largest_free_block,
    maybe_out_of_memory,
)
from vllm_nfp.timing import Clock
from vllm_nfp.types import LayerTime, Module, RefusedForNowError, Shape, ShapeRefusedError, Timing

logger = logging.getLogger("vllm.nfp")

_LIMIT = "graph_memory_mib"
GRAPHED_SHAPES = 2
"""Shapes that must have their graphs at the same time: those of a pair."""
BATCH_OF_TOKENS = 1 << 15
"""Token ids kept for probes."""
HEAD_START_SECONDS = 2e-4
"""Time that an idle stream is kept busy, so that the launch of a run is not timed with it."""
LONGEST_HOLD_SECONDS = 0.01
GPU_CYCLES_PER_SECOND = 1.8e9
"""Roughly, of the GPUs of today; only the length of a hold depends on it."""


P = ParamSpec("P")
R = TypeVar("R")


def _in_inference_mode(method: Callable[P, R]) -> Callable[P, R]:
    """The probe's tensors are made in it; steps without a probe do not pay for entering it."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode():
            return method(*args, **kwargs)

    return wrapped


ShapeKey = tuple[int, int]
"""(batch size, positions); the context is no part of it, since graphs fit every context."""


@dataclass(slots=True)
class _Prepared:
    """One (B, N) with its buffers and, on a GPU that serves with FULL graphs, its graphs."""

    batch: ProbeBatch
    warm: bool = False
    """It has run, so that its kernels are loaded and a capture needs no run before it."""
    step_graph: Graph | None = None
    head_graph: Graph | None = None
    hidden: torch.Tensor | None = None
    """Output of the step's graph, where the head is no graph."""
    module_graph: Graph | None = None
    module_marks: ModuleMarks | None = None
    busy: bool = False
    """The marks inside its graph have not been read since the last replay."""

    @property
    def full(self) -> bool:
        """Serving would run it as a FULL graph."""
        return self.batch.placement.execution is Execution.FULL

    @property
    def graphs(self) -> list[Graph]:
        """The graphs that it has."""
        graphs = (self.step_graph, self.head_graph, self.module_graph)
        return [graph for graph in graphs if graph is not None]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A launched run whose marks are to be read."""

    shape: Shape
    prepared: _Prepared
    step: StepMarks
    modules: ModuleMarks
    proof: Proof | None = None
    """That the run kept the KV cache, where it is the first of its kind."""


class VllmProbeEngine:
    """Runs probe shapes on a vLLM runner's model, in inference mode as vLLM does.

    Args:
        view: the runner.
        clock: CUDA events on a GPU, the host's clock on a CPU.
        config: the probe's settings.
        graphs: what its CUDA graphs may take.
        place: memory pool and stream of vLLM's own graphs, for the probe's to share; None: the
            probe's have a pool of their own.
        ranks: those that run each shape with this one.

    Raises:
        UnknownVllmError: if vLLM is unlike what is known of it.
        UnsupportedModelError: if the model's layers cannot be told apart.
        CellDoesNotFitError: if its KV cache cannot be addressed block by block.
    """

    def __init__(
        self,
        view: RunnerView,
        clock: Clock,
        config: ProbeConfig,
        graphs: GraphLimits,
        place: GraphPlace | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        bindings.check(view.vllm_config)
        self._view = view
        self._ranks: Ranks = ranks or Alone()
        self._clock = clock
        self._config = config
        self._graphs = graphs
        self._device = view.device
        self._on_gpu = self._device.type == "cuda"
        self.memory = GpuMemory.of(self._device)
        self._host = HostMemory(None if graphs.host_mib is None else graphs.host_mib << 20)
        vllm_config = view.vllm_config
        runner = view.runner
        num_blocks = runner.kv_cache_config.num_blocks
        self._causal = not (config.bidirectional or vllm_config.model_config.is_diffusion)
        self._max_len = int(vllm_config.model_config.max_model_len)
        self._max_tokens = int(vllm_config.scheduler_config.max_num_batched_tokens)
        self._max_seqs = int(vllm_config.scheduler_config.max_num_seqs)
        self._rules = graph_rules(vllm_config, runner.attn_groups, self._device)
        self._groups = own_groups(runner.attn_groups, num_blocks, vllm_config, self._device)
        self._widths = [-(-self._max_len // group.block_tokens) for group in self._groups]
        self._readers = self._make_readers(self._groups)
        self.bag = TokenBag(
            vllm_config.model_config.get_vocab_size(),
            max(BATCH_OF_TOKENS, self._max_tokens),
            self._device,
            config.seed,
        )
        compilation = vllm_config.compilation_config
        layers = find_decoder_layers(
            view.model, compilation.static_forward_context, compilation.static_all_moe_layers
        )
        self._contexts = compilation.static_forward_context
        self._prover = Prover(self._contexts, self._groups, clock, self._device)
        self._proven: set[tuple[int, int, bool]] = set()
        """(batch size, positions, as a graph): runs of which one was, or is being, proven."""
        self._proofs: list[Proof] = []
        """Those under way that no ticket carries."""
        self._whole_cache: bytes | None = None
        """Its checksum at the start."""
        self.timed_layers = sample_layers(layers, config.sampled_layers)
        self.num_layers = len(layers)
        self._forward = Forward(view, clock, self._groups, layers, self.timed_layers)
        self._prepared: dict[ShapeKey, _Prepared] = {}
        self._tables: tuple[torch.Tensor, ...] | None = None
        self._place = place
        self._shelf: Shelf[ShapeKey] = Shelf(graphs.memory_mib << 20)
        self._refused: dict[ShapeKey, str] = {}
        self._most_graph_tokens: int | None = None
        """Largest graph that the memory limit allows; None until it is known."""
        self._started = False
        """The time at the start, in which memory may be taken for a moment, is over."""
        self._pool_block = 0
        self._pool_allowance = 0
        """Growth of the graphs' pool that is already taken off the shelf's limit."""
        # With several ranks the head ends in a collective that vLLM itself never captures.
        self._capture_head = self._ranks.alone
        self._capture_ended = False
        self._module_launch_seconds = LONGEST_HOLD_SECONDS / 2

    def _make_readers(self, groups: Sequence[AttentionGroup]) -> list[BlockReader]:
        return [
            BlockReader(group, width, self._device, self._config.seed + index)
            for index, (group, width) in enumerate(zip(groups, self._widths, strict=True))
        ]

    def refusal(self, batch_size: int, context: int) -> str | None:
        """Why the cell cannot be probed at all; None if at least two positions can be."""
        if batch_size > self._max_seqs:
            return f"batch size {batch_size} exceeds --max-num-seqs {self._max_seqs}"
        if context + 2 > self._max_len:
            return f"context {context} leaves no room for 2 positions in {self._max_len} tokens"
        return self._blocks_missing(batch_size, context + 2)

    def _blocks_missing(self, batch_size: int, tokens: int) -> str | None:
        for group, reader in zip(self._groups, self._readers, strict=True):
            needed = reader.blocks_needed(batch_size, tokens)
            if needed >= group.num_blocks:
                return (
                    f"{needed} distinct KV blocks are needed, the cache has {group.num_blocks - 1}"
                )
        return None

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        """Position counts of the grid that fit the model, the KV cache, and the limits.

        They end before the first count that cannot be run as serving would run it: a boundary is
        told from all counts below it.
        """
        fitting = (
            n
            for n in self._config.grid
            if context + n <= self._max_len
            and batch_size * n <= self._max_tokens
            and self._blocks_missing(batch_size, context + n) is None
        )
        return tuple(itertools.takewhile(lambda n: self._can_probe(batch_size, n), fitting))

    def _can_probe(self, batch_size: int, positions: int) -> bool:
        if self._started and not self._ranks.alone:
            prepared = self._prepared.get((batch_size, positions))
            return prepared is not None and self._complete(prepared)
        return self._memory_missing(batch_size, positions) is None

    def _memory_missing(self, batch_size: int, positions: int) -> str | None:
        """Why the memory limit forbids the shape; None if it does not, as far as is known."""
        if not self._on_gpu:
            return None
        placement = self._placement(batch_size, positions)
        logits = self._logits_bytes(batch_size * positions)
        if placement.execution is Execution.FULL:
            return self._graph_missing(placement.padded_tokens, logits)
        if not self._ranks.alone:
            return self._logits_missing(logits)
        if logits > self._graphs.memory_mib << 19:
            # Activations are no larger than those of a prompt, but of a prompt few logits are made.
            return (
                f"logits of {logits >> 20} MiB without a CUDA graph exceed half of {_LIMIT} "
                f"{self._graphs.memory_mib}"
            )
        return None

    def _graph_missing(self, tokens: int, logits: int) -> str | None:
        limit = self._graphs.memory_mib
        capacity = self._shelf.capacity
        if limit == 0 or (capacity is not None and capacity < GRAPHED_SHAPES):
            return (
                f"the CUDA graphs of {GRAPHED_SHAPES} shapes, {self._shelf.mean / (1 << 20):.0f} "
                f"MiB each, do not fit {_LIMIT} {limit}"
            )
        if self._most_graph_tokens is None:  # not learned yet, or any
            return None
        if tokens > self._most_graph_tokens:
            return (
                f"a step of {tokens} tokens is larger than vLLM's own CUDA graphs, and what it "
                f"takes does not fit {_LIMIT} {limit}"
            )
        if not self._capture_head:
            return self._logits_missing(logits)
        if logits > max(self._pool_block, limit << 19):
            return f"logits of {logits >> 20} MiB exceed what vLLM's graphs and {_LIMIT} hold"
        return None

    def _logits_missing(self, logits: int) -> str | None:
        """With several ranks logits lie outside graphs: they may take what the sampler takes.

        For a full batch it has the logits in parts, put together, and once more in 32 bits; vLLM
        has kept memory back for that, and none of it is in use while a probe runs.
        """
        full_batch = 4 * self._logits_bytes(self._max_seqs)
        if 2 * logits > max(full_batch, self._graphs.memory_mib << 20):
            return f"logits of {logits >> 20} MiB exceed those of a full batch and half of {_LIMIT}"
        return None

    def _logits_bytes(self, tokens: int) -> int:
        config = self._view.vllm_config.model_config
        return tokens * int(config.get_vocab_size()) * int(config.dtype.itemsize)

    def prepare(self, time_is_up: Callable[[], bool] = lambda: False) -> None:
        """Make the buffers of every shape, learn what graphs take, and warm shapes up.

        Graphs that are not there when the time is up are made by :meth:`make_ready`, between steps;
        shapes that would need one and are not warmed up by then are left out.
        """
        maybe_fail("capture")
        shapes = {
            (b, n)
            for b in self._config.batch_sizes
            for c in self._config.contexts
            if self.refusal(b, c) is None
            for n in self.positions(b, c)
        }
        for key in shapes:
            self._made(*key)
        self.give_back_cache()
        eager = [key for key in shapes if not self._prepared[key].full]
        logits = max((self._logits_bytes(b * n) for b, n in eager), default=0)
        self._shelf.limit -= self.memory.taken + min(logits, self._graphs.memory_mib << 19)
        if not self._ranks.alone:
            self._capture_together(sorted(shapes, key=lambda k: (k[1], k[0])), time_is_up)
            shapes = set()
        if self._on_gpu and any(self._prepared[key].full for key in shapes):
            self._learn_sizes([key for key in shapes if self._prepared[key].full], time_is_up)
        allowed = [key for key in shapes if self._memory_missing(*key) is None]
        for key in sorted(allowed, key=lambda k: (k[1], k[0])):
            if time_is_up():
                break
            self._warm_up_if_it_fits(key)
        self.give_back_cache()
        self._started = True
        reasons = {why for key in shapes if (why := self._memory_missing(*key)) is not None}
        for reason in sorted(reasons):
            logger.warning("vllm-nfp: shapes are left out: %s", reason)

    def _capture_together(self, ordered: list[ShapeKey], time_is_up: Callable[[], bool]) -> None:
        """Warm up and capture with the other ranks, each shape on all of them or on none.

        All graphs are made here, few positions first, as many as fit: between steps the ranks
        could not wait for one another's captures. Shapes that lack theirs are left out.
        """
        # Larger ones than vLLM's own are tried as well: what they take is measured.
        sizes = self._rules.capture_sizes
        self._most_graph_tokens = max(sizes, default=0) if self._place is not None else None
        for key in ordered:
            prepared = self._prepared[key]
            shape = Shape(key[0], min(self._config.contexts), key[1])
            possible = (
                not time_is_up()
                and not (prepared.full and self._capture_ended)
                and self._memory_missing(*key) is None
                and self.can_launch(shape)
            )
            if not self._ranks.all(possible, f"can B={key[0]} N={key[1]} be made ready"):
                continue
            self._warm_up(prepared)
            if prepared.full:
                self._capture_on_all(key)
        left_out = sum(not self._complete(self._prepared[key]) for key in ordered)
        if left_out:
            logger.warning(
                "vllm-nfp: %d of %d shapes are not ready on every rank and are left out: "
                "raise %s or capture_seconds in --nfp-config",
                left_out,
                len(ordered),
                _LIMIT,
            )

    def _capture_on_all(self, key: ShapeKey) -> None:
        try:
            while not self._complete(self._prepared[key]):
                self._make_piece(key, keep=set(self._prepared))
            fits = self._shelf.used <= self._shelf.limit
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._capture_ended = isinstance(error, CaptureEndedError)
            fits = False
        if not self._ranks.all(fits, "does the graph fit"):
            if key in self._shelf:
                self._evict(key)
            else:
                _give_up_graphs(self._prepared[key])
            self._capture_ended = True

    def _warm_up_if_it_fits(self, key: ShapeKey) -> None:
        try:
            self._warm_up(self._prepared[key])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if self._prepared[key].full:  # others may be warmed up later
                self._refused[key] = "there was no GPU memory to run it in at the start"

    def _learn_sizes(self, full: list[ShapeKey], time_is_up: Callable[[], bool]) -> None:
        """Find out how many tokens a graph may have, and what the graphs of a shape take."""
        self._most_graph_tokens = 0
        if self._place is not None:
            self._most_graph_tokens = self._largest_live_graph()
            self._pool_block = largest_free_block(self._place)
        by_tokens = sorted(full, key=lambda key: (-key[0] * key[1], key))
        self._try_large_graphs(by_tokens, time_is_up)
        fitting = [key for key in full if self._memory_missing(*key) is None]
        first = sorted(fitting, key=lambda key: (key[1], key[0]))[:GRAPHED_SHAPES]
        try:
            for key in first:
                while not self._complete(self._prepared[key]) and not time_is_up():
                    self._make_piece(key, keep=set(first))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("vllm-nfp: no GPU memory for the first CUDA graphs: %s", error)
        capacity = self._shelf.capacity
        if capacity is not None and capacity < GRAPHED_SHAPES:
            for key in first:
                if key in self._shelf:
                    self._evict(key)

    def _largest_live_graph(self) -> int:
        """Tokens of vLLM's own largest FULL graph."""
        rules, drafts = self._rules, self._view.decode_positions
        sizes = rules.capture_sizes
        if not rules.full_mixed:
            sizes = tuple(size for size in sizes if size <= rules.max_num_seqs * drafts)
        return max(sizes, default=0)

    def _try_large_graphs(self, by_tokens: list[ShapeKey], time_is_up: Callable[[], bool]) -> None:
        """Allow more tokens than vLLM's graphs have where the limit holds their activations.

        Tried in a pool that is thrown away: what a pool has grown by it keeps.
        """
        shared, tokens = self._place, None
        for key in by_tokens:
            size = self._prepared[key].batch.placement.padded_tokens
            if size <= (self._most_graph_tokens or 0) or time_is_up():
                break
            if tokens is not None and size > tokens // 2:
                continue
            self._place, tokens = own_place(self._device, shared), size
            grown = self._try_graph(self._prepared[key])
            if grown is not None:
                self._most_graph_tokens = size
                self._pool_allowance = grown
                self._pool_block = max(self._pool_block, grown)
                self._shelf.limit -= grown
                break
        self._place = shared
        self.give_back_cache()

    def _try_graph(self, prepared: _Prepared) -> int | None:
        """Bytes of activations of a shape's graphs; None if they exceed half of the limit."""
        trial = GpuMemory.of(self._device)
        try:
            self._warm_up(prepared)
            self.give_back_cache()
            grown = trial.track(lambda: self._capture_step(prepared)).pool
            grown += trial.track(lambda: self._capture_modules(prepared)).pool
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            _give_up_graphs(prepared)
        return grown if grown <= self._shelf.limit // 2 else None

    def give_back_cache(self) -> None:
        """Return what is left in PyTorch's cache; for the start only, since it waits."""
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            self.memory.count_reserve()

    @property
    def graph_bytes(self) -> int:
        """GPU memory that the probe has taken: buffers, graphs, and growth of the graphs' pool."""
        return self.memory.taken

    @property
    def shares_graph_memory(self) -> bool:
        """The probe's graphs lie in the pool of vLLM's."""
        return self._place is not None and self._place.shared

    def ready(self, shape: Shape) -> bool:
        """Whether a launch would find all that it needs."""
        prepared = self._prepared.get((shape.batch_size, shape.positions))
        return prepared is not None and self._complete(prepared)

    def _complete(self, prepared: _Prepared) -> bool:
        if not prepared.full:
            return prepared.warm
        return prepared.step_graph is not None and (
            prepared.module_graph is not None or not self.timed_layers
        )

    @_in_inference_mode
    def make_ready(self, shapes: Sequence[Shape]) -> None:
        """Make one piece of what the shapes still lack; older shapes' graphs may go for it.

        Raises:
            RefusedForNowError: if memory does not suffice at the moment.
            ShapeRefusedError: if the limits of memory never allow it.
        """
        keys = {(shape.batch_size, shape.positions) for shape in shapes}
        for shape in shapes:
            key = (shape.batch_size, shape.positions)
            reason = self._refused.get(key) or self._memory_missing(*key)
            if reason is None and self._is_late(self._made(*key)):
                reason = "it was not warmed up at the start: raise capture_seconds in --nfp-config"
            if reason is not None:
                raise ShapeRefusedError(reason)
            if not self._complete(self._made(*key)):
                with _refused_without_memory():
                    self._make_piece(key, keep=keys)
                return

    def _is_late(self, prepared: _Prepared) -> bool:
        """It is too late to warm the shape up: that takes what its graph will find in its pool."""
        return self._started and prepared.full and not prepared.warm

    def _make_piece(self, key: ShapeKey, keep: set[ShapeKey]) -> None:
        """Warm up, or capture the step, or capture the modules: whichever comes next."""
        prepared = self._prepared[key]
        maybe_out_of_memory()
        if not prepared.warm:
            self._warm_up(prepared)
            return
        if key not in self._shelf:
            self._make_room(keep)
        capture = self._capture_step if prepared.step_graph is None else self._capture_modules
        change = self._host.track(lambda: self.memory.track(lambda: capture(prepared)))
        allowed = min(self._pool_allowance, max(0, change.pool))
        self._pool_allowance -= allowed
        self._shelf.limit -= max(0, change.pool) - allowed
        self._shelf.put(key, change.driver)

    def _make_room(self, keep: set[ShapeKey]) -> None:
        """Have older shapes give up their graphs for one more; at the host's limit one for one."""
        oldest = self._shelf.oldest_but(keep) if self._host.is_full else None
        oldest = oldest or self._shelf.in_the_way(keep)
        while oldest is not None:
            self._evict(oldest)
            oldest = self._shelf.in_the_way(keep)

    def _evict(self, key: ShapeKey) -> None:
        prepared = self._prepared[key]
        self.memory.track(lambda: _give_up_graphs(prepared), expected=-self._shelf.mean)
        self._shelf.drop(key)
        if not len(self._shelf) and not self.shares_graph_memory:
            # PyTorch forgets a memory pool with its last graph; its handle is then of no use.
            self._place = None

    def _made(self, batch_size: int, positions: int) -> _Prepared:
        key = (batch_size, positions)
        return self._prepared.get(key) or self._make(*key)

    def _make(self, batch_size: int, positions: int) -> _Prepared:
        placement = self._placement(batch_size, positions)
        batch = ProbeBatch(
            batch_size,
            positions,
            placement,
            self._widths,
            self._device,
            self._causal,
            self._shared_tables(placement.padded_sequences),
        )
        prepared = _Prepared(batch)
        self._prepared[batch_size, positions] = prepared
        return prepared

    def _shared_tables(self, sequences: int) -> tuple[torch.Tensor, ...]:
        """Block tables for all shapes: no two run at the same time.

        Graphs hold their address, so that they are made once, for the largest batch.
        """
        if self._tables is None:
            rows = [sequences]
            for b in self._config.batch_sizes:
                if b <= self._max_seqs:
                    rows += [self._placement(b, n).padded_sequences for n in self._config.grid]
            self._tables = tuple(
                torch.zeros((max(rows), width), dtype=torch.int32, device=self._device)
                for width in self._widths
            )
        return self._tables

    def _placement(self, batch_size: int, positions: int) -> Placement:
        return place(self._rules, batch_size, positions)

    def _warm_up(self, prepared: _Prepared) -> None:
        """Run the shape once: kernels are then loaded and tuned when they are timed or captured."""
        if prepared.warm:
            return
        context = min(self._config.contexts)
        prepared.batch.fill(context, self._readers, self.bag)
        # At the start the whole cache is summed up before and after.
        proving = self._prover.begin(prepared.batch, context) if self._started else None
        # The kernels of a capture: attention splits its work otherwise there.
        metadata = self._forward.metadata(prepared.batch, context, for_capture=prepared.full)
        with self._forward.in_place(prepared.batch):
            hidden = self._forward.run_model(prepared.batch, metadata)
            self._forward.run_head(prepared.batch, hidden)
        if self.timed_layers:
            self._discard(self._forward.run_modules(prepared.batch, metadata, external=False))
        if proving is not None:
            self._proofs.append(proving.end(f"the first run of {_name_of(prepared.batch)}"))
        prepared.warm = True

    def _capture_step(self, prepared: _Prepared) -> None:
        """Capture the forward pass and the LM head as two graphs.

        Hidden states and logits lie in the pool and are forgotten: each replay of the head follows
        that of the forward pass at once, before any other graph can use their memory.
        """
        context = min(self._config.contexts)
        batch = prepared.batch
        batch.fill(context, self._readers, self.bag)
        metadata = self._forward.metadata(batch, context, for_capture=True)
        where = self._graph_place()
        step = Graph(where.pool)
        hidden = step.capture(
            lambda: self._forward.run_model(batch, metadata),
            where.stream,
            self._ranks,
            warm_up=False,
        )
        if self._capture_head:
            head = Graph(where.pool)
            head.capture(lambda: self._forward.run_head(batch, hidden), where.stream, warm_up=False)
            prepared.head_graph = head  # not before: a shape without memory keeps no half of it
        else:
            prepared.hidden = hidden
        prepared.step_graph = step

    def _capture_modules(self, prepared: _Prepared) -> None:
        """Capture the timed modules as a graph, with their marks inside."""
        context = min(self._config.contexts)
        batch = prepared.batch
        batch.fill(context, self._readers, self.bag)
        metadata = self._forward.metadata(batch, context, for_capture=True)
        where = self._graph_place()
        graph = Graph(where.pool)
        prepared.module_marks = graph.capture(
            lambda: self._forward.run_modules(batch, metadata, external=_capturing()),
            where.stream,
            self._ranks,
            warm_up=False,
        )
        prepared.module_graph = graph

    def _graph_place(self) -> GraphPlace:
        if self._place is None:
            self._place = own_place(self._device)
        return self._place

    @_in_inference_mode
    def launch(self, shape: Shape, draw: int = 0) -> Ticket:
        """Enqueue the step and the modules of one shape; waits for nothing.

        Args:
            draw: which tokens to run on; runs of the same number share theirs as far as they go.

        Raises:
            RefusedForNowError: if memory does not suffice at the moment.
            ShapeRefusedError: if the KV cache does not suffice.
            KvCacheWrittenError: if an earlier run has changed the KV cache.
        """
        if self._ranks.alone:  # others would wait for a launch that all have agreed on
            self.check_proofs()
        with _refused_without_memory():
            maybe_out_of_memory()
            prepared = self._prepared_for(shape)
            metadata = self._inputs(shape, prepared, draw)
            return self._launch(shape, prepared, metadata)

    @_in_inference_mode
    def can_launch(self, shape: Shape) -> bool:
        """Do all of a launch that can fail, without running anything; False if it is refused.

        Memory that the run will ask for is asked for here, and left in PyTorch's reserve.
        """
        self.check_proofs()
        try:
            with _refused_without_memory():
                maybe_out_of_memory()
                prepared = self._prepared_for(shape)
                self._inputs(shape, prepared)
                self._clock.release(self._clock.mark())
                if self._on_gpu:
                    size = self._bytes_of_run(prepared)
                    torch.empty(size, dtype=torch.uint8, device=self._device)
        except ShapeRefusedError as refused:
            logger.info("vllm-nfp: %s is refused: %s", shape, refused)
            return False
        return True

    def _bytes_of_run(self, prepared: _Prepared) -> int:
        """At least what a run takes at a time beside its graphs: logits, and a layer's inside.

        Logits are made in parts and put together; a layer holds its input, residual, and what its
        widest part reads and writes.
        """
        model = self._view.vllm_config.model_config
        tokens = len(prepared.batch.positions)
        per_token = 2 * int(model.get_vocab_size())
        if prepared.step_graph is None:
            hidden = int(model.get_hidden_size())
            widest = int(getattr(model.hf_text_config, "intermediate_size", 0) or 4 * hidden)
            per_token += 8 * hidden + 4 * widest
        return 2 * tokens * per_token + self._prover.most_bytes

    def discard(self, ticket: Ticket) -> None:
        """Give a ticket up unread: its marks are recorded again before anyone reads them."""
        ticket.prepared.busy = False
        self._release(ticket)
        if ticket.proof is not None:
            self._proofs.append(ticket.proof)

    def check_proofs(self) -> None:
        """Judge the proofs under way that are there; waits for nothing.

        Raises:
            KvCacheWrittenError: if a run has changed the KV cache.
        """
        while self._proofs and self._clock.ready(self._proofs[0].mark):
            self._judge(self._proofs.pop(0))

    def _judge(self, proof: Proof) -> None:
        self._clock.release(proof.mark)
        proof.judge()

    def _prepared_for(self, shape: Shape) -> _Prepared:
        key = (shape.batch_size, shape.positions)
        prepared = self._made(*key)
        if prepared.busy:
            raise RefusedForNowError(f"{shape} is still running")
        if self._started and prepared.full and prepared.step_graph is None:
            raise ShapeRefusedError(f"{shape} has no CUDA graph")
        if key in self._shelf:
            self._shelf.use(key)
        return prepared

    def _inputs(self, shape: Shape, prepared: _Prepared, draw: int = 0) -> dict[str, Any]:
        """Fill the batch; its attention metadata."""
        maybe_fail("prepare")
        prepared.batch.fill(shape.context, self._readers, self.bag, draw=draw)
        metadata = self._forward.metadata(prepared.batch, shape.context, for_capture=False)
        maybe_fail("forward")
        return metadata

    def _launch(self, shape: Shape, prepared: _Prepared, metadata: dict[str, Any]) -> Ticket:
        kind = (shape.batch_size, shape.positions, prepared.step_graph is not None)
        proving = None
        if kind not in self._proven:
            self._proven.add(kind)
            proving = self._prover.begin(prepared.batch, shape.context)
        if self._on_gpu and (proving is not None or torch.cuda.current_stream().query()):
            self._hold_stream(HEAD_START_SECONDS)
        step = self._run_step(prepared, metadata)
        modules = self._run_modules(prepared, metadata)
        proof = None if proving is None else proving.end(f"a run of {_name_of(prepared.batch)}")
        return Ticket(shape, prepared, step, modules, proof)

    def _run_step(self, prepared: _Prepared, metadata: dict[str, Any]) -> StepMarks:
        # Moving inputs is no part of the step: it lies outside the marks.
        with self._forward.in_place(prepared.batch):
            start = self._clock.mark()
            hidden = prepared.hidden
            if prepared.step_graph is not None:
                prepared.step_graph.replay()
            else:
                hidden = self._forward.run_model(prepared.batch, metadata)
            after_forward = self._clock.mark()
            if prepared.head_graph is not None:
                prepared.head_graph.replay()
            else:
                assert hidden is not None
                self._forward.run_head(prepared.batch, hidden)
            return StepMarks(start, after_forward, self._clock.mark())

    def _run_modules(self, prepared: _Prepared, metadata: dict[str, Any]) -> ModuleMarks:
        if prepared.module_graph is not None:
            assert prepared.module_marks is not None
            prepared.module_graph.replay()
            prepared.busy = True
            return prepared.module_marks
        if not self.timed_layers:
            return ModuleMarks()
        self._hold_stream(self._module_launch_seconds)
        begun = time.perf_counter()
        marks = self._forward.run_modules(prepared.batch, metadata, external=False)
        self._module_launch_seconds = time.perf_counter() - begun
        return marks

    def _hold_stream(self, seconds: float) -> None:
        """Keep the GPU busy for this long, so that what follows is launched ahead of it.

        A module's time is that of its kernels; without a graph the gaps between launches would
        be timed with them.
        """
        if self._on_gpu:
            torch.cuda._sleep(int(min(seconds, LONGEST_HOLD_SECONDS) * GPU_CYCLES_PER_SECOND))

    def poll(self, ticket: Ticket) -> Timing | None:
        """The timing, once the device has passed the run's last mark.

        Raises:
            KvCacheWrittenError: if the run, or an earlier one, has changed the KV cache.
        """
        self.check_proofs()
        last = ticket.modules.empty[1] if ticket.modules.empty else ticket.step.end
        if not (self._clock.ready(ticket.step.end) and self._clock.ready(last)):
            return None
        if ticket.proof is not None and not self._clock.ready(ticket.proof.mark):
            return None
        timing = self._read(ticket)
        ticket.prepared.busy = False
        self._release(ticket)
        if ticket.proof is not None:
            self._judge(ticket.proof)
        return timing

    def _read(self, ticket: Ticket) -> Timing:
        step, modules = ticket.step, ticket.modules
        own_cost = self._clock.seconds(*modules.empty) if modules.empty else 0.0
        # A layer may call a module more than once: its calls add up.
        by_layer: dict[tuple[int, Module], float] = defaultdict(float)
        for interval in modules.intervals:
            seconds = self._clock.seconds(interval.start, interval.end) - own_cost
            by_layer[interval.layer, interval.module] += max(seconds, 1e-9)
        times = tuple(LayerTime(layer, m, seconds) for (layer, m), seconds in by_layer.items())
        return Timing(
            shape=ticket.shape,
            step_seconds=self._clock.seconds(step.start, step.end),
            lm_head_seconds=self._clock.seconds(step.after_forward, step.end),
            modules=_means(times),
            layers=times,
            execution=str(ticket.prepared.batch.placement.execution),
        )

    def _release(self, ticket: Ticket) -> None:
        for mark in (ticket.step.start, ticket.step.after_forward, ticket.step.end):
            self._clock.release(mark)
        self._discard(ticket.modules)

    def _discard(self, modules: ModuleMarks) -> None:
        marks = list(modules.empty or ())
        marks += [m for interval in modules.intervals for m in (interval.start, interval.end)]
        # Where a collective splits a module, one mark ends an interval and begins the next.
        for mark in dict.fromkeys(marks):
            self._clock.release(mark)

    def check_kv_cache_untouched(self) -> None:
        """Prove that probes change no byte of the KV cache; before :meth:`prepare`, and after it.

        The first call sums the whole cache up, and runs the smallest cell without graphs. The
        second runs the smallest and the largest shape of each kind of execution that is ready,
        graphs among them, and sums the whole cache up again: all runs of the start lie between.

        Raises:
            KvCacheWrittenError: if one did.
            ShapeRefusedError: if the smallest cell cannot be run on every rank.
        """
        if self._whole_cache is None:
            self._whole_cache = self._kv_checksums()
            self._run_smallest_cell()
            return
        with self._forward.slots_of_a_step():
            for shape in self._ready_shapes():
                possible = self._ranks.alone or self.can_launch(shape)
                if self._ranks.all(possible, f"proof of {shape}"):
                    with suppress(ShapeRefusedError):
                        self._run_now(shape)
        if self._kv_checksums() != self._whole_cache:
            raise KvCacheWrittenError("a probe at the start")

    def _run_smallest_cell(self) -> None:
        b, context = self._config.batch_sizes[0], self._config.contexts[0]
        counts = self.positions(b, context) if self.refusal(b, context) is None else ()
        for n in dict.fromkeys((*counts[:1], *counts[-1:])):
            shape = Shape(b, context, n)
            possible = self._ranks.alone or self.can_launch(shape)
            if not self._ranks.all(possible, "can the KV cache be checked"):
                raise ShapeRefusedError(f"{shape} cannot run on every rank")
            self._run_now(shape)
            prepared = self._prepared[b, n]
            prepared.warm = not prepared.full  # a capture takes other kernels

    def _ready_shapes(self) -> list[Shape]:
        """The smallest and the largest shape of each kind of execution, of those that are ready."""
        kinds: dict[Execution, list[ShapeKey]] = defaultdict(list)
        for key, prepared in self._prepared.items():
            if self._complete(prepared):
                kinds[prepared.batch.placement.execution].append(key)
        extremes = [key for _, keys in sorted(kinds.items()) for key in (min(keys), max(keys))]
        return [
            Shape(b, contexts[0], n)
            for b, n in dict.fromkeys(extremes)
            if (contexts := [c for c in self._config.contexts if self._fits(b, c, n)])
        ]

    def _fits(self, batch_size: int, context: int, positions: int) -> bool:
        possible = self.refusal(batch_size, context) is None
        return possible and positions in self.positions(batch_size, context)

    def _run_now(self, shape: Shape) -> None:
        """Launch and wait; for the start only."""
        ticket = self.launch(shape)
        wait_for(lambda: self.poll(ticket))

    def _kv_checksums(self) -> bytes:
        caches = list(caches_of(self._contexts, self._view.runner.kv_caches))
        if not caches:
            raise UnknownVllmError("the layers of this vLLM have no kv_cache to be looked at")
        return checksum(caches)

    def close(self) -> None:
        """Give up graphs and buffers."""
        for key in list(self._prepared):
            if key in self._shelf:
                self._evict(key)
        self._prepared.clear()
        self._readers = []
        self._tables = None


def _give_up_graphs(prepared: _Prepared) -> None:
    for graph in prepared.graphs:
        graph.reset()
    prepared.step_graph = prepared.head_graph = prepared.module_graph = None
    prepared.module_marks = prepared.hidden = None


@contextmanager
def _refused_without_memory() -> Iterator[None]:
    """Turn a lack of GPU memory, or of KV blocks, into a refusal of the shape.

    Memory may be there again later, since others use it as well. KV blocks never are: the cache
    keeps its size.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CellDoesNotFitError):
            raise ShapeRefusedError(str(error)) from error
        if is_out_of_memory(error):
            raise RefusedForNowError(str(error)) from error
        raise


def _name_of(batch: ProbeBatch) -> str:
    """For messages."""
    graph = batch.placement.execution
    return f"B={batch.batch_size} N={batch.positions_per_sequence} (CUDA graphs: {graph})"


def _means(times: Sequence[LayerTime]) -> dict[Module, float]:
    grouped: dict[Module, list[float]] = defaultdict(list)
    for time_of_layer in times:
        grouped[time_of_layer.module].append(time_of_layer.seconds)
    return {module: sum(values) / len(values) for module, values in grouped.items()}


def _capturing() -> bool:
    return bool(torch.cuda.is_current_stream_capturing())


def wait_for(poll: Callable[[], Timing | None], limit_seconds: float = 60.0) -> Timing:
    """Poll until there is a timing; for the start only, where nobody waits.

    Raises:
        TimeoutError: if the device does not get there.
    """
    deadline = time.monotonic() + limit_seconds
    while (timing := poll()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"a probe did not finish within {limit_seconds:g} s")
        time.sleep(0.0005)
    return timing
