"""Times single modules of a loaded model, as the model calls them.

On a GPU the calls of one measurement are one CUDA graph, in sequence as in a step. They cycle
through the layers, so that weights come from memory and not from the L2 cache. For the same reason
attention reads other KV blocks in each call: in a server all weights of a layer pass through the
cache between two attention calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vllm_nfp.adapter.attention_groups import CellDoesNotFitError, own_groups
from vllm_nfp.adapter.dispatch import Execution, Placement
from vllm_nfp.adapter.layers import DecoderLayer, find_decoder_layers, linear_layers
from vllm_nfp.adapter.out_of_memory import is_out_of_memory
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.calibrate.points import Kernel, Series
from vllm_nfp.calibrate.sweep import Call, PointRefusedError
from vllm_nfp.calibrate.weights import bytes_of, with_own_weights
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.cuda_graph import Graph
from vllm_nfp.probe.forward import Forward
from vllm_nfp.probe.kv_blocks import block_readers
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.timing import Clock
from vllm_nfp.types import Module

MIN_CALLS = 4
MAX_CALLS = 16
"""Calls in one measurement: enough to drown the marks and the start of the graph."""
DISTINCT_BYTES = 192 << 20
"""Bytes that the calls of one measurement read before any is read again; L2 holds 50 to 126 MB."""
TARGET_SECONDS = 4e-4
"""Length of one measurement that suffices, where the calls are long."""
FASTEST_BYTES_PER_SECOND = 8e12
"""No GPU reads faster; only the number of calls in a measurement depends on it."""
Run = Callable[[], Any]


class ModuleBench:
    """Prepares calls of a model's modules for timing.

    Args:
        view: the runner of an engine without requests.
        clock: CUDA events on a GPU, the host's clock on a CPU.
        seed: of hidden states, token ids and KV blocks.

    Raises:
        UnsupportedModelError: if the model's layers cannot be identified.
    """

    def __init__(self, view: RunnerView, clock: Clock, seed: int = 0) -> None:
        config, runner = view.vllm_config, view.runner
        self._view = view
        self._clock = clock
        self._device = view.device
        self._on_gpu = self._device.type == "cuda"
        self._dtype = config.model_config.dtype
        self._hidden_size = int(config.model_config.get_hidden_size())
        self._max_len = int(config.model_config.max_model_len)
        self._max_tokens = int(config.scheduler_config.max_num_batched_tokens)
        blocks = runner.kv_cache_config.num_blocks
        self._groups = own_groups(runner.attn_groups, blocks, config, self._device)
        self._widths = [-(-self._max_len // group.block_tokens) for group in self._groups]
        self._readers = block_readers(self._groups, self._device, seed)
        vocabulary = config.model_config.get_vocab_size()
        self._tokens = TokenPool(vocabulary, self._max_tokens, self._device, seed)
        compilation = config.compilation_config
        self._layers = find_decoder_layers(
            view.model, compilation.static_forward_context, compilation.static_all_moe_layers
        )
        self._forward = Forward(view, clock, self._groups, self._layers, self._layers[:1])
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._pool = torch.cuda.graph_pool_handle() if self._on_gpu else None
        self._stream = torch.cuda.Stream(self._device) if self._on_gpu else None
        self._graphs: list[Graph] = []
        self._copied: tuple[str, list[Any]] = ("", [])

    @property
    def attention_backend(self) -> str:
        """vLLM's name of the first layer's attention backend, with FlashAttention's version."""
        backend = self._view.runner.attn_groups[0][0].backend
        implementation = getattr(self._layers[0].attention[0], "impl", None)
        version = getattr(implementation, "vllm_flash_attn_version", None)
        return f"{backend.get_name()}{'' if version is None else f'_{version}'}"

    def linear_names(self) -> tuple[str, ...]:
        """Names, within a layer, of the linear layers that all layers have."""
        each = [set(linear_layers(layer)) for layer in self._layers]
        return tuple(sorted(set.intersection(*each)))

    def has(self, kernel: Kernel) -> bool:
        """Whether the model has such a module."""
        if kernel in (Kernel.DENSE_FFN, Kernel.MOE_FFN):
            return bool(self._with_ffn(kernel))
        return True

    def sizes(self, series: Series) -> tuple[int, int, int]:
        """Inputs, outputs and bytes of the weights of one layer; 0 where there are none."""
        if series.kernel is Kernel.ATTENTION:
            return 0, 0, 0
        if series.kernel is Kernel.LM_HEAD:
            weight = self._view.model.lm_head.weight
            return int(weight.shape[1]), int(weight.shape[0]), bytes_of(self._view.model.lm_head)
        if series.kernel is Kernel.LINEAR:
            linear = linear_layers(self._layers[0])[series.name]
            return int(linear.input_size), int(linear.output_size), bytes_of(linear)
        return 0, 0, sum(map(bytes_of, self._with_ffn(series.kernel)[0].ffn))

    def ready(self, series: Series, positions: int) -> Call:
        """A measurement at N positions, warmed up.

        Raises:
            PointRefusedError: if memory, the KV cache or the model's limits forbid it.
        """
        try:
            batch = self._batch(series, positions)
            if series.kernel is Kernel.ATTENTION:
                return self._attention(series, batch)
            runs, read = self._token_runs(series, batch)
            return self._timed(_repeated(runs, read))
        except RuntimeError as error:
            if isinstance(error, CellDoesNotFitError) or is_out_of_memory(error):
                raise PointRefusedError(str(error)) from error
            raise

    def release(self) -> None:
        """Free all graphs and their memory."""
        self._graphs.clear()
        if self._on_gpu:
            # PyTorch forgets a memory pool with its last graph; its handle is then of no use.
            self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.empty_cache()

    def _batch(self, series: Series, positions: int) -> ProbeBatch:
        tokens = series.batch_size * positions
        if tokens > self._max_tokens:
            raise CellDoesNotFitError(f"{tokens} tokens exceed {self._max_tokens}")
        if series.context + positions > self._max_len and series.kernel is Kernel.ATTENTION:
            raise CellDoesNotFitError(f"the context exceeds {self._max_len}")
        placement = Placement(Execution.NONE, tokens, series.batch_size)
        return ProbeBatch(
            series.batch_size, positions, placement, self._widths, self._device, series.causal
        )

    def _token_runs(self, series: Series, batch: ProbeBatch) -> tuple[list[Run], int]:
        """Runs of a module that sees only tokens, and the bytes that one of them reads."""
        *_, weight_bytes = self.sizes(series)
        runs = [self._in_context(batch, {}, run) for run in self._modules(series, batch.tokens)]
        return runs, weight_bytes

    def _modules(self, series: Series, tokens: int) -> list[Run]:
        if series.kernel is Kernel.LM_HEAD:
            hidden = self._hidden(tokens)
            return [lambda: self._view.model.compute_logits(hidden)]
        if series.kernel is Kernel.LINEAR:
            linears = self._copies(series.name)
            width = int(linears[0].input_size)
            return [_bind((linear,), self._hidden(tokens, width)) for linear in linears]
        # Several hidden states a layer: each draw of tokens activates other experts.
        return [
            _bind(layer.ffn, self._hidden(tokens))
            for _ in range(MIN_CALLS)
            for layer in self._with_ffn(series.kernel)
        ]

    def _copies(self, name: str) -> list[Any]:
        """The layers' linear layer of this name, and copies until L2 cannot hold them all."""
        if self._copied[0] != name:
            linears = [linear_layers(layer)[name] for layer in self._layers]
            wanted = min(MAX_CALLS, -(-DISTINCT_BYTES // max(1, bytes_of(linears[0]))))
            extra = [with_own_weights(linears[0]) for _ in range(wanted - len(linears))]
            self._copied = (name, linears + extra)
        return self._copied[1]

    def _attention(self, series: Series, batch: ProbeBatch) -> Call:
        """The first layer's attention on its own inputs, over disjoint sets of KV blocks.

        As in a server, the metadata are rebuilt before each replay: builders keep what graphs read,
        such as the schedule of the work, in buffers that all shapes share.
        """
        layer = self._layers[0]
        length = series.context + batch.positions_per_sequence
        most = min(reader.variants(series.batch_size, length) for reader in self._readers)
        kv_bytes = sum(
            group.blocks_needed(series.batch_size, length) * _page_bytes(group)
            for group in self._groups
        )
        inputs = self._attention_inputs(series, batch, layer)
        runs: list[Run] = []
        for variant in range(max(1, min(most, MAX_CALLS))):
            one = self._batch(series, batch.positions_per_sequence)
            one.fill(series.context, self._readers, self._tokens, variant)
            metadata = self._forward.metadata(one, series.context, for_capture=self._on_gpu)
            runs += [
                self._in_context(one, metadata, _bind_arguments(module, *given))
                for module, given in inputs
            ]
            if variant * kv_bytes > DISTINCT_BYTES:
                break
        call = self._timed(_repeated(runs, kv_bytes))

        def with_metadata() -> float:
            self._forward.metadata(batch, series.context, for_capture=False)
            return call()

        return with_metadata

    def _attention_inputs(
        self, series: Series, batch: ProbeBatch, layer: DecoderLayer
    ) -> list[tuple[nn.Module, tuple[Any, Any]]]:
        """What the layer hands to its attention modules, of one forward pass."""
        given: dict[int, tuple[Any, Any]] = {}

        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            given[id(module)] = (args, kwargs)

        handles = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in layer.attention]
        try:
            batch.fill(series.context, self._readers, self._tokens)
            self._forward.inputs.fill(batch)
            metadata = self._forward.metadata(batch, series.context, for_capture=False)
            self._forward.run_modules(batch, metadata, external=False)
        finally:
            for handle in handles:
                handle.remove()
        return [(module, given[id(module)]) for module in layer.attention]

    def _in_context(self, batch: ProbeBatch, metadata: dict[str, Any], run: Run) -> Run:
        def within() -> Any:
            with self._forward.context(metadata, batch, Execution.NONE, compiled=False):
                return run()

        return within

    def _timed(self, runs: Sequence[Run]) -> Call:
        if not self._on_gpu:
            return lambda: self._on_host(runs)
        graph = Graph(self._pool)
        graph.capture(lambda: _all(runs), self._stream)
        self._graphs.append(graph)
        return lambda: self._replay(graph, len(runs))

    def _replay(self, graph: Graph, calls: int) -> float:
        start = self._clock.mark()
        graph.replay()
        end = self._clock.mark()
        torch.cuda.current_stream().synchronize()
        seconds = self._clock.seconds(start, end) / calls
        self._clock.release(start)
        self._clock.release(end)
        return seconds

    def _on_host(self, runs: Sequence[Run]) -> float:
        start = self._clock.mark()
        _all(runs)
        return self._clock.seconds(start, self._clock.mark()) / len(runs)

    def _hidden(self, tokens: int, width: int | None = None) -> torch.Tensor:
        shape = (tokens, width or self._hidden_size)
        made = torch.randn(shape, device=self._device, generator=self._generator)
        return made.to(self._dtype)

    def _with_ffn(self, kernel: Kernel) -> list[DecoderLayer]:
        kind = Module(kernel.value)
        return [layer for layer in self._layers if layer.ffn_kind is kind]


def _bind(modules: Sequence[nn.Module], hidden: torch.Tensor) -> Run:
    return lambda: [module(hidden) for module in modules]


def _bind_arguments(module: nn.Module, args: Any, kwargs: Any) -> Run:
    return lambda: module(*args, **kwargs)


def _page_bytes(group: Any) -> int:
    return int(group.builder.kv_cache_spec.page_size_bytes)


def _repeated(runs: list[Run], read_bytes: int) -> list[Run]:
    """The runs in turn, as many as fill a measurement; each at least once."""
    seconds = max(2e-6, read_bytes / FASTEST_BYTES_PER_SECOND)
    wanted = min(MAX_CALLS, max(MIN_CALLS, round(TARGET_SECONDS / seconds)))
    return list(itertools.islice(itertools.cycle(runs), wanted))


def _all(runs: Sequence[Run]) -> None:
    for run in runs:
        run()
