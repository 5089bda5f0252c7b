"""The probe engine over a vLLM model runner."""

from __future__ import annotations

import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vllm_nfp.config import ProbeConfig
from vllm_nfp.engine.batch import (
    AttentionGroup,
    BlockReader,
    CellDoesNotFitError,
    ProbeBatch,
    TokenBag,
    own_groups,
)
from vllm_nfp.engine.dispatch import Execution, Placement, place
from vllm_nfp.engine.forward import Forward, Graph, ModuleMarks, StepMarks
from vllm_nfp.engine.layers import find_decoder_layers, sample_layers
from vllm_nfp.engine.memory import is_out_of_memory
from vllm_nfp.engine.ranks import Alone, CaptureEndedError, Ranks
from vllm_nfp.engine.runners import RunnerView, graph_rules
from vllm_nfp.estimate import Module
from vllm_nfp.faults import maybe_fail
from vllm_nfp.probe import LayerTime, Shape, ShapeRefusedError, Timing
from vllm_nfp.timing import Clock

logger = logging.getLogger("vllm.nfp")

BATCH_OF_TOKENS = 1 << 15
"""Token ids kept for probes."""
HEAD_START_SECONDS = 2e-4
"""Time that an idle stream is kept busy, so that the launch of a run is not timed with it."""
LONGEST_HOLD_SECONDS = 0.01
GPU_CYCLES_PER_SECOND = 1.8e9
"""Roughly, of the GPUs of today; only the length of a hold depends on it."""


class KvCacheWrittenError(RuntimeError):
    """A probe changed the KV cache: the attention backend ignores padding slots."""


@dataclass(slots=True)
class _Prepared:
    """One (B, N) with its buffers and, on a GPU that serves with FULL graphs, its graphs."""

    batch: ProbeBatch
    step_graph: Graph | None = None
    hidden: torch.Tensor | None = None
    module_graph: Graph | None = None
    module_marks: ModuleMarks | None = None
    busy: bool = False
    """The marks inside its graph have not been read since the last replay."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A launched run whose marks are to be read."""

    shape: Shape
    prepared: _Prepared
    step: StepMarks
    modules: ModuleMarks


class VllmProbeEngine:
    """Runs probe shapes on a vLLM runner's model.

    Args:
        view: the runner.
        clock: CUDA events on a GPU, the host's clock on a CPU.
        config: the probe's settings.
        ranks: those that run each shape with this one.

    Raises:
        UnsupportedModelError: if the model's layers cannot be told apart.
        CellDoesNotFitError: if its KV cache cannot be addressed block by block.
    """

    def __init__(
        self, view: RunnerView, clock: Clock, config: ProbeConfig, ranks: Ranks | None = None
    ) -> None:
        self._view = view
        self._ranks: Ranks = ranks or Alone()
        self._clock = clock
        self._config = config
        self._device = view.device
        self._on_gpu = self._device.type == "cuda"
        vllm_config = view.vllm_config
        runner = view.runner
        num_blocks = runner.kv_cache_config.num_blocks
        # vLLM releases that know no diffusion lack the property.
        diffusion = bool(getattr(vllm_config.model_config, "is_diffusion", False))
        self._causal = not (config.bidirectional or diffusion)
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
        self._kv_layers = [module for layer in layers for module in layer.attention]
        self.timed_layers = sample_layers(layers, config.sampled_layers)
        self.num_layers = len(layers)
        self._forward = Forward(view, clock, self._groups, layers, self.timed_layers)
        self._prepared: dict[tuple[int, int], _Prepared] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._on_gpu else None
        # One stream for all captures: memory is reused within a stream only.
        self._capture_stream = torch.cuda.Stream(self._device) if self._on_gpu else None
        self.graph_bytes = 0
        self._captured = False
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
        """Position counts of the grid that fit the model, the KV cache and the token limit.

        They end before the first count that lacks its CUDA graph: a boundary is told from all
        counts below it.
        """
        fitting = (
            n
            for n in self._config.grid
            if context + n <= self._max_len
            and batch_size * n <= self._max_tokens
            and self._blocks_missing(batch_size, context + n) is None
        )
        missing = self._without_graph
        return tuple(itertools.takewhile(lambda n: (batch_size, n) not in missing, fitting))

    @property
    def _without_graph(self) -> set[tuple[int, int]]:
        """Shapes that serving would run as a FULL graph, for which there was no room or time."""
        return {
            key
            for key, prepared in self._prepared.items()
            if prepared.batch.placement.execution is Execution.FULL and prepared.step_graph is None
        }

    def prepare(self) -> None:
        """Make the buffers of every shape and capture its graphs, within the settings' limits.

        Largest first, so that smaller graphs live in memory that larger ones have used; a graph
        that breaks the memory limit is given up again. Without FULL graphs in the server nothing
        is captured.
        """
        maybe_fail("capture")
        deadline = time.monotonic() + self._config.capture_seconds
        free_before = self._free_bytes()
        shapes = {
            (b, n)
            for b in self._config.batch_sizes
            for c in self._config.contexts
            if self.refusal(b, c) is None
            for n in self.positions(b, c)
        }
        for b, n in sorted(shapes, key=lambda shape: (-shape[0] * shape[1], shape)):
            prepared = self._make(b, n)
            if prepared.batch.placement.execution is Execution.FULL and self._ranks.all(
                self._can_capture(Shape(b, min(self._config.contexts), n), deadline),
                f"can B={b} N={n} be captured",
            ):
                self._capture_within_limit(prepared, free_before)
        self.graph_bytes = max(0, free_before - self._free_bytes())
        self._captured = True
        left_out = len(self._without_graph)
        if left_out:
            logger.warning(
                "vllm-nfp: %d of %d shapes have no CUDA graph of their own and are left out; "
                "raise graph_memory_mib (%d) or capture_seconds (%g) in --nfp-config",
                left_out,
                len(shapes),
                self._config.graph_memory_mib,
                self._config.capture_seconds,
            )

    def _can_capture(self, shape: Shape, deadline: float) -> bool:
        if self._capture_ended or time.monotonic() >= deadline:
            return False
        return self._ranks.alone or self.can_launch(shape)

    def _capture_within_limit(self, prepared: _Prepared, free_before: int) -> None:
        try:
            self._capture(prepared)
            fits = free_before - self._free_bytes() <= self._config.graph_memory_mib << 20
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._capture_ended = isinstance(error, CaptureEndedError)
            fits = False
        if not self._ranks.all(fits, "does the graph fit"):
            self._release_graphs(prepared)

    def _release_graphs(self, prepared: _Prepared) -> None:
        prepared.step_graph = prepared.module_graph = prepared.hidden = None
        prepared.module_marks = None
        if not any(other.step_graph for other in self._prepared.values()):
            # PyTorch forgets a memory pool with its last graph; its handle is then of no use.
            self._pool = torch.cuda.graph_pool_handle()

    def _free_bytes(self) -> int:
        """GPU memory that nobody holds, PyTorch's own reserve given back first."""
        if not self._on_gpu:
            return 0
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])

    def _make(self, batch_size: int, positions: int) -> _Prepared:
        placement = self._placement(batch_size, positions)
        batch = ProbeBatch(
            batch_size, positions, placement, self._widths, self._device, self._causal
        )
        prepared = _Prepared(batch)
        self._prepared[batch_size, positions] = prepared
        return prepared

    def _placement(self, batch_size: int, positions: int) -> Placement:
        return place(self._rules, batch_size, positions)

    def _capture(self, prepared: _Prepared) -> None:
        """Capture the whole step and the timed modules, each as one graph."""
        context = min(self._config.contexts)
        batch = prepared.batch
        batch.fill(context, self._readers, self.bag)
        metadata = self._forward.metadata(batch, context, for_capture=True)
        stream = self._capture_stream
        prepared.step_graph = Graph(self._pool)
        prepared.hidden = prepared.step_graph.capture(
            lambda: self._forward.run_model(batch, metadata), stream, self._ranks
        )
        if self.timed_layers:
            prepared.module_graph = Graph(self._pool)
            prepared.module_marks = prepared.module_graph.capture(
                lambda: self._forward.run_modules(batch, metadata, external=_capturing()),
                stream,
                self._ranks,
            )
        torch.cuda.current_stream().synchronize()

    def launch(self, shape: Shape) -> Ticket:
        """Enqueue the step and the modules of one shape; waits for nothing.

        Raises:
            ShapeRefusedError: if memory or the KV cache does not suffice.
        """
        with _refusals():
            prepared = self._prepared_for(shape)
            metadata = self._inputs(shape, prepared)
            return self._launch(shape, prepared, metadata)

    def can_launch(self, shape: Shape) -> bool:
        """Do all of a launch that can fail, without running anything; False if it is refused.

        Memory that the run will ask for is asked for here, and left in PyTorch's reserve.
        """
        try:
            with _refusals():
                prepared = self._prepared_for(shape)
                self._inputs(shape, prepared)
                self._clock.release(self._clock.mark())
                if self._on_gpu:
                    size = self._bytes_of_run(len(prepared.batch.positions))
                    torch.empty(size, dtype=torch.uint8, device=self._device)
        except ShapeRefusedError as refused:
            logger.info("vllm-nfp: %s is refused: %s", shape, refused)
            return False
        return True

    def _bytes_of_run(self, tokens: int) -> int:
        """At least what a run takes at a time beside its graphs: logits, and a layer's inside.

        Logits are made in parts and put together; a layer holds its input, residual, and what its
        widest part reads and writes.
        """
        model = self._view.vllm_config.model_config
        config = model.hf_text_config
        hidden, vocabulary = int(model.get_hidden_size()), int(model.get_vocab_size())
        widest = int(getattr(config, "intermediate_size", 0) or 4 * hidden)
        return 2 * tokens * (2 * vocabulary + 8 * hidden + 4 * widest)

    def discard(self, ticket: Ticket) -> None:
        """Give a ticket up unread: its marks are recorded again before anyone reads them."""
        ticket.prepared.busy = False
        self._release(ticket)

    def _prepared_for(self, shape: Shape) -> _Prepared:
        key = (shape.batch_size, shape.positions)
        prepared = self._prepared.get(key) or self._make(*key)
        if prepared.busy:
            raise ShapeRefusedError(f"{shape} is still running")
        if self._captured and key in self._without_graph:
            raise ShapeRefusedError(f"{shape} has no CUDA graph")
        return prepared

    def _inputs(self, shape: Shape, prepared: _Prepared) -> dict[str, Any]:
        """Fill the batch; its attention metadata."""
        maybe_fail("prepare")
        prepared.batch.fill(shape.context, self._readers, self.bag)
        metadata = self._forward.metadata(prepared.batch, shape.context, for_capture=False)
        maybe_fail("forward")
        return metadata

    def _launch(self, shape: Shape, prepared: _Prepared, metadata: dict[str, Any]) -> Ticket:
        if self._on_gpu and torch.cuda.current_stream().query():
            self._hold_stream(HEAD_START_SECONDS)
        step = self._run_step(prepared, metadata)
        modules = self._run_modules(prepared, metadata)
        return Ticket(shape, prepared, step, modules)

    def _run_step(self, prepared: _Prepared, metadata: dict[str, Any]) -> StepMarks:
        start = self._clock.mark()
        if prepared.step_graph is not None:
            prepared.step_graph.replay()
            hidden = prepared.hidden
            assert hidden is not None
        else:
            hidden = self._forward.run_model(prepared.batch, metadata)
        after_forward = self._clock.mark()
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
        """The timing, once the device has passed the run's last mark."""
        last = ticket.modules.empty[1] if ticket.modules.empty else ticket.step.end
        if not (self._clock.ready(ticket.step.end) and self._clock.ready(last)):
            return None
        timing = self._read(ticket)
        ticket.prepared.busy = False
        self._release(ticket)
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
        step, modules = ticket.step, ticket.modules
        marks = [step.start, step.after_forward, step.end, *(modules.empty or ())]
        marks += [m for interval in modules.intervals for m in (interval.start, interval.end)]
        for mark in marks:
            self._clock.release(mark)

    def check_kv_cache_untouched(self) -> None:
        """Run one probe and prove that it changed no byte of the KV cache.

        Raises:
            KvCacheWrittenError: if it did.
        """
        before = self._kv_checksums()
        b = self._config.batch_sizes[0]
        context = self._config.contexts[0]
        if self.refusal(b, context) is not None:
            return
        shape = Shape(b, context, self.positions(b, context)[-1])
        possible = self._ranks.alone or self.can_launch(shape)
        if not self._ranks.all(possible, "can the KV cache be checked"):
            raise ShapeRefusedError(f"{shape} cannot run on every rank")
        ticket = self.launch(shape)
        wait_for(lambda: self.poll(ticket))
        # Its shape has been run before its graph was captured.
        self._prepared.clear()
        if self._kv_checksums() != before:
            raise KvCacheWrittenError(
                "a probe changed the KV cache: this attention backend writes padding slots"
            )

    def _kv_checksums(self) -> list[int]:
        seen: dict[int, torch.Tensor] = {}
        for module in self._kv_layers:
            caches = module.kv_cache
            for cache in caches if isinstance(caches, (list, tuple)) else [caches]:
                if isinstance(cache, torch.Tensor) and cache.numel():
                    seen[cache.data_ptr()] = cache
        return [_checksum(cache) for cache in seen.values()]

    def close(self) -> None:
        """Give up graphs and buffers."""
        self._prepared.clear()
        self._readers = []
        self.graph_bytes = 0


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what memory or the KV cache lacks into a refusal."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CellDoesNotFitError) or is_out_of_memory(error):
            raise ShapeRefusedError(str(error)) from error
        raise


def _checksum(cache: torch.Tensor) -> int:
    """A sum over the cache's bytes, of the storage as it lies in memory; copies nothing."""
    flat = torch.empty(0, dtype=torch.uint8, device=cache.device).set_(cache.untyped_storage())
    whole = flat[: flat.numel() // 8 * 8].view(torch.int64)
    return int(whole.sum().item()) ^ int(flat[len(whole) * 8 :].sum().item())


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
