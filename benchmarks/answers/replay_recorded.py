"""Servers whose step times are known: recorded whole steps, and steps composed of kernels.

A recorded server answers at the shapes that were recorded, and at no other. A composed one adds the
recorded times of a model's kernels up (``2026-11-24-h100-kernels``): products and FFNs at the
tokens that its CUDA graph runs, attention at B, N and L, all layers of the published model. Its
FFNs, projections and LM head are measured at every shape. Attention is measured at batch sizes 1,
8, 32 and 128 (1024 tokens), 1, 8 and 32 (4096), and 1 and 8 (16384); between and beyond these the
ratio of measured to predicted is interpolated over log B and log L, or stays as at the nearest.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import shapes
from vllm_nfp.calibrate.curves import shape_of
from vllm_nfp.calibrate.points import Curve, Kernel, KernelSamples, read_samples
from vllm_nfp.principle import ModelShape, Serving, Target, shape_from_config, target_of
from vllm_nfp.principle.graphs import DEFAULT_CAPTURE_SIZES, CapturedGraphs
from vllm_nfp.principle.step import Step
from vllm_nfp.surface.prior import Prior, predicted_prior
from vllm_nfp.types import Module

POSITIONS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (1024, 4096, 16384)
LAYERS = {
    "llama-3.1-70b": 80, "llama-3.1-8b": 32, "llama-3.1-8b-fp8": 32, "qwen3-1.7b": 28,
    "qwen3-30b-a3b": 48, "llama-3.2-1b": 16, "olmoe-1b-7b": 16, "phi-3-mini": 32,
    "qwen2.5-7b": 28, "qwen3-14b": 40, "qwen3-14b-fp8": 40, "qwen3-235b-a22b": 94,
}  # fmt: skip
"""Of the published models; the kernels were timed with a layer or two."""
REFERENCE = ("llama-3.1-70b", "llama-3.1-8b", "qwen3-1.7b", "qwen3-30b-a3b")
"""Models whose kernels fitted the constants of the prediction."""
LAUNCH_PER_LAYER = {False: (4e-4, 1.2e-3), True: (8e-4, 2.4e-3)}
"""Seconds to launch a layer where there is no CUDA graph, of a dense model and of one with experts:
each composed server draws its own from this range. Recorded servers that launches bound took 0.6 to
0.9 ms without experts, and 1.2 to 2.1 ms with them."""
ATTENTION_CELLS = (
    (1, 1024), (8, 1024), (32, 1024), (128, 1024), (1, 4096), (8, 4096), (32, 4096),
    (1, 16384), (8, 16384),
)  # fmt: skip
"""Where attention was timed alone."""

Cell = tuple[int, int]
"""(batch size, context)"""


@dataclass(frozen=True)
class Server:
    """A server whose times are known.

    Attributes:
        name: of the recording.
        family: the model; all servers of a family are held out together.
        cells: where it is scored: (batch size, context).
        positions: N at which its times are known, ascending from 1, by cell.
        seconds: t(N) of each module there, in the same order; all layers' for the whole step, one
            layer's for a module, by (module, batch size, context).
    """

    name: str
    family: str
    shape: ModelShape
    target: Target
    serving: Serving
    positions: Mapping[Cell, tuple[int, ...]]
    seconds: Mapping[tuple[Module, int, int], tuple[float, ...]]
    spread: Mapping[tuple[Module, int, int], tuple[float, ...]] = field(default_factory=dict)
    """Standard deviation of the recorded log ratios themselves, from their 95 % intervals."""
    composed: bool = False
    max_positions: int = field(default=32)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """(batch size, context) at which times are known."""
        return tuple(self.positions)

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules whose times are known."""
        return tuple(dict.fromkeys(module for module, _, _ in self.seconds))

    @property
    def routed(self) -> bool:
        """Whether it has experts, whose times depend on the tokens."""
        return self.shape.num_moe_layers > 0

    def layers(self, module: Module) -> int:
        """Layers that have the module; 1 for the whole step."""
        return {
            Module.MODEL: 1,
            Module.DENSE_FFN: self.shape.num_dense_layers,
            Module.MOE_FFN: self.shape.num_moe_layers,
        }.get(module, self.shape.num_layers)

    def measured_cells(self, module: Module) -> tuple[Cell, ...]:
        """Cells of the module that were measured, not interpolated."""
        if self.composed and module is Module.ATTENTION:
            return tuple(cell for cell in self.cells if cell in ATTENTION_CELLS)
        return self.cells

    def deviations(self, module: Module, cell: Cell) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Standard deviation of the recorded log t(N) / t(1) itself."""
        known = self.spread.get((module, *cell))
        return np.zeros(len(self.positions[cell])) if known is None else np.array(known)

    @cached_property
    def prior(self) -> Prior:
        """The principle's prediction for it."""
        return predicted_prior(self.shape, self.target, self.serving, self.max_positions)

    def ratios(self, module: Module, cell: Cell) -> np.ndarray[Any, np.dtype[np.float64]]:
        """t(N) / t(1) at the known N."""
        times = np.array(self.seconds[module, *cell])
        return np.asarray(times / times[0])


def all_servers(results: Path) -> list[Server]:
    """Every server of the kept results."""
    target = target_of("H100-SXM")
    return [*_composed_servers(results / "2026-11-24-h100-kernels", target),
            *_recorded_servers(results, target)]  # fmt: skip


def _composed_servers(folder: Path, target: Target) -> Iterator[Server]:
    for path in sorted(folder.glob("*/*.jsonl.gz")):
        samples = read_samples(path)
        if samples.model in LAYERS:
            yield _compose(samples, target)


def _compose(samples: KernelSamples, target: Target) -> Server:
    layers = LAYERS[samples.model]
    config = {**samples.config, "num_hidden_layers": layers}
    shape = shape_of(replace(samples, config=config))
    serving = Serving()
    token_curves = [c for c in samples.curves if c.series.kernel is not Kernel.ATTENTION]
    attention = _Attention(samples, shape, target)
    draw = np.random.default_rng(zlib.crc32(samples.model.encode()))
    each = LAUNCH_PER_LAYER[shape.num_moe_layers > 0]
    launch = layers * float(np.exp(draw.uniform(*np.log(each))))
    ffn = Module.MOE_FFN if shape.num_moe_layers else Module.DENSE_FFN
    positions: dict[Cell, tuple[int, ...]] = {}
    seconds: dict[tuple[Module, int, int], tuple[float, ...]] = {}
    for batch_size in BATCH_SIZES:
        counts = np.array([n for n in POSITIONS if batch_size * n <= 1024])
        tokens = batch_size * counts
        run = serving.graphs.run_steps(batch_size, counts.astype(float))
        ffn_seconds = np.zeros(len(counts))
        others = np.zeros(len(counts))
        for curve in token_curves:
            kernel, name = curve.series.kernel, curve.series.name
            unpadded = kernel in (Kernel.MOE_FFN, Kernel.LM_HEAD)
            at = _interpolated(curve, tokens if unpadded else run.tokens)
            if kernel in (Kernel.MOE_FFN, Kernel.DENSE_FFN):
                ffn_seconds += at
            elif kernel is Kernel.LM_HEAD:
                others += at
            elif not name.startswith("mlp."):  # the FFN holds its own products
                others += layers * at
        norms = Step(shape, target, serving, batch_size, 0, counts.astype(float)).parts()
        others += norms["norms and rotary"].seconds()
        for context in CONTEXTS:
            one = attention.seconds(batch_size, context, counts)
            work = layers * (ffn_seconds + one) + others
            step = np.where(run.in_graph, work, np.maximum(work, launch))
            positions[batch_size, context] = tuple(counts.tolist())
            for module, times in (
                (ffn, ffn_seconds),
                (Module.ATTENTION, one),
                (Module.MODEL, step),
            ):
                seconds[module, batch_size, context] = tuple(times.tolist())
    family = samples.model.removesuffix("-fp8")
    return Server(samples.model, family, shape, target, serving, positions, seconds, composed=True)


def _interpolated(curve: Curve, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    at = np.interp(np.log(tokens), np.log(curve.positions), np.log(curve.medians))
    return np.asarray(np.exp(at))


class _Attention:
    """One layer's measured attention, and between its cells measured over predicted."""

    def __init__(self, samples: KernelSamples, shape: ModelShape, target: Target) -> None:
        self._shape, self._target = shape, target
        self._curves = {
            (c.series.context, c.series.batch_size): c
            for c in samples.curves
            if c.series.kernel is Kernel.ATTENTION and c.series.causal
        }

    def seconds(
        self, batch_size: int, context: int, counts: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        sizes = sorted(b for at, b in self._curves if at == context)
        errors = [self._log_error(context, b, counts) for b in sizes]
        by_position = np.array(errors).T
        error = np.array([np.interp(np.log(batch_size), np.log(sizes), e) for e in by_position])
        return np.asarray(np.exp(error) * self._predicted(context, batch_size, counts))

    def _log_error(
        self, context: int, batch_size: int, counts: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        curve = self._curves[context, batch_size]
        kept = np.minimum(counts, curve.positions[-1])
        measured = np.interp(np.log(kept), np.log(curve.positions), np.log(curve.medians))
        return np.asarray(measured - np.log(self._predicted(context, batch_size, kept)))

    def _predicted(
        self, context: int, batch_size: int, counts: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        step = Step(
            self._shape, self._target, Serving(), batch_size, context, counts.astype(np.float64)
        )
        return np.asarray(step.module(Module.ATTENTION).seconds())


def _recorded_servers(results: Path, target: Target) -> Iterator[Server]:
    whole = results / "2026-11-24-h100-whole-models"
    for name in ("qwen3-14b", "olmoe-1b-7b"):
        folder = whole / f"{name}-causal"
        rows = _read(folder / "engine-0.json")["curves"]
        sizes = _read(folder / "environment-0.json")["cudagraph_capture_sizes"]
        yield _recorded(f"{name}:6", name, 6, rows, sizes, target)
    for name, kind in (("qwen3-8b", "dense"), ("qwen3-30b-a3b", "moe")):
        table = _read(results / "2026-11-24-h100" / f"{kind}-table.json")
        rows, layers = table["snapshot"]["curves"], table["layers"]
        yield _recorded(f"{name}:{layers}", name, layers, rows, DEFAULT_CAPTURE_SIZES, target)
    drafts = results / "2026-11-26-h100-draft-lengths"
    for run in ("dense", "long-dense", "short/moe", "long-moe"):
        profile = _read(drafts / run / "spec/probe/profile-0.json")
        name = profile["model"]["name"]
        yield _profiled(f"{run}", name, profile, target)
    ranks = results / "2026-11-25-h100x2-tensor-parallel"
    for run, name in (("dense-tp1", "llama-3.1-70b"), ("dense-tp2", "llama-3.1-70b"),
                      ("moe-tp2", "qwen3-30b-a3b"), ("moe-ep2", "qwen3-30b-a3b")):  # fmt: skip
        profile = _read(ranks / f"{run}-profile-0.json")
        yield _profiled(run, name, profile, target, expert_parallel=run.endswith("ep2"))


def _profiled(
    label: str,
    name: str,
    profile: Mapping[str, Any],
    target: Target,
    expert_parallel: bool = False,
) -> Server:
    around = profile["environment"]
    return _recorded(
        label, name, profile["model"]["num_layers"], profile["curves"],
        around["cudagraph_capture_sizes"], target, around.get("tensor_parallel_size") or 1,
        expert_parallel,
    )  # fmt: skip


def _recorded(
    label: str,
    name: str,
    layers: int,
    rows: list[Mapping[str, Any]],
    capture_sizes: Any,
    target: Target,
    ranks: int = 1,
    expert_parallel: bool = False,
) -> Server:
    config = {**shapes.SHAPES[name], "num_hidden_layers": layers}
    shape = shape_from_config(config, tensor_parallel_size=ranks, expert_parallel=expert_parallel)
    curves: dict[tuple[Module, int, int], dict[int, float]] = {}
    for row in rows:
        key = (Module(row["module"]), row["batch_size"], row["context"])
        curves.setdefault(key, {})[row["positions"]] = row["ratio"] * 1.0
    base = {
        (Module(r["module"]), r["batch_size"], r["context"]): r["median_seconds"]
        for r in rows
        if r["positions"] == 1
    }
    positions: dict[Cell, tuple[int, ...]] = {}
    seconds: dict[tuple[Module, int, int], tuple[float, ...]] = {}
    for (_, batch_size, context), curve in curves.items():
        counts = tuple(sorted(n for n in curve if n <= 32))
        cell = (batch_size, context)
        positions[cell] = tuple(sorted({*positions.get(cell, ()), *counts}))
    for key, curve in curves.items():
        counts = positions[key[1:]]
        seconds[key] = tuple(base[key] * curve.get(n, np.nan) for n in counts)
    intervals = {
        (Module(r["module"]), r["batch_size"], r["context"], r["positions"]): float(
            np.log(r["ratio_upper"] / r["ratio_lower"]) / 3.92
        )
        for r in rows
    }
    spread = {
        key: tuple(intervals.get((*key, n), 0.0) for n in positions[key[1:]]) for key in curves
    }
    serving = Serving(graphs=CapturedGraphs(tuple(sorted(capture_sizes))))
    return Server(label, name, shape, target, serving, positions, seconds, spread)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
