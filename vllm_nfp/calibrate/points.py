"""Kernel timings: series over N, their curves, and the samples of a model.

Plain data and their JSON; no torch, no vLLM.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vllm_nfp.typed_json import TypedJsonError, parse, read_bytes, write_whole

MAX_SAMPLE_BYTES = 64 << 20
"""Most text that a file may hold, gzipped or not."""


MAX_COUNT = 1 << 40
"""Largest count, byte counts included, that a file of samples may hold."""
MAX_NAME = 200
_TOO_LONG = f"more than {MAX_SAMPLE_BYTES >> 20} MiB"


class SampleError(ValueError):
    """A file of kernel samples that cannot be read; the message names it and says why."""


class Kernel(StrEnum):
    """What is timed alone, as vLLM calls it."""

    LINEAR = "linear"
    """One linear layer, named in :attr:`Series.name`."""
    DENSE_FFN = "dense_ffn"
    MOE_FFN = "moe_ffn"
    """Router, routed and shared experts."""
    ATTENTION = "attention"
    """The attention operator with the KV cache, without projections."""
    LM_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Series:
    """One kernel in one cell, to be timed at several numbers of positions.

    Kernels that see only tokens have batch_size 1 and context 0: positions are tokens.
    """

    kernel: Kernel
    batch_size: int = 1
    context: int = 0
    causal: bool = True
    """False: the positions of a block see one another, as in diffusion decoding."""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Times of a series.

    Attributes:
        series: what was timed.
        positions: N, ascending.
        seconds: for each N the time of one call, one value a pass, passes interleaved over N.
        inputs, outputs: columns of a linear layer's weight; 0 for other kernels.
        weight_bytes: bytes that the kernel's weights take; 0 for attention.
    """

    series: Series
    positions: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    inputs: int = 0
    outputs: int = 0
    weight_bytes: int = 0

    @property
    def medians(self) -> tuple[float, ...]:
        """Median seconds at each N."""
        return tuple(statistics.median(passes) for passes in self.seconds)

    @property
    def spread(self) -> float:
        """Median over N of (largest - smallest) / median of the passes."""
        return statistics.median(
            (max(passes) - min(passes)) / statistics.median(passes) for passes in self.seconds
        )


@dataclass(frozen=True, slots=True)
class KernelSamples:
    """All curves of one model's kernels on one device, and the environment."""

    model: str
    config: Mapping[str, Any]
    """The model's config.json."""
    environment: Mapping[str, Any]
    curves: tuple[Curve, ...]

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Further arguments of the engine, such as a quantization."""
        given = self.environment.get("arguments")
        return given if isinstance(given, Mapping) else {}

    @property
    def device_name(self) -> str:
        """As torch names the device; empty if that was not recorded."""
        device = self.environment.get("device")
        name = device.get("name") if isinstance(device, Mapping) else None
        return name if isinstance(name, str) else ""


def write_samples(path: Path, samples: KernelSamples) -> None:
    """JSON lines: a header, then a line for each curve; seconds with six digits."""
    header = {
        "model": samples.model,
        "config": dict(samples.config),
        "environment": dict(samples.environment),
    }
    lines = [json.dumps(header), *(json.dumps(_curve_to_json(c)) for c in samples.curves)]
    write_whole(path, "\n".join(lines) + "\n")


def read_samples(path: Path) -> KernelSamples:
    """Read what :func:`write_samples` wrote, plain or gzipped (``.gz``).

    Raises:
        SampleError: if the file cannot be read or is no such file.
    """
    try:
        raw = read_bytes(path, MAX_SAMPLE_BYTES)
        text = _unpack(raw) if path.suffix == ".gz" else raw.decode()
        return _samples_of(text.splitlines())
    except OSError as error:
        raise SampleError(f"{path} cannot be read: {error.strerror}") from None
    except TypedJsonError as error:
        raise SampleError(str(error)) from None
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise SampleError(f"{path} holds no kernel samples ({error!r:.200})") from None


def _unpack(raw: bytes) -> str:
    """Decompress, up to a bound: a small file must not become an endless text."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(raw, MAX_SAMPLE_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if unpacker.unconsumed_tail:
        raise ValueError(_TOO_LONG)
    if not unpacker.eof:
        raise ValueError("the gzip stream is cut off")
    return text.decode()


def _samples_of(lines: Iterable[str]) -> KernelSamples:
    rows: Iterator[Any] = (parse(line) for line in lines if line.strip())
    header = next(rows, None)
    if header is None:
        raise ValueError("empty file")
    model, config, environment = header["model"], header["config"], header["environment"]
    if not (isinstance(model, str) and isinstance(config, dict) and isinstance(environment, dict)):
        raise ValueError("the header's model, config and environment are not text and two objects")
    curves = tuple(_curve_from_json(row) for row in rows)
    return KernelSamples(model, config, environment, curves)


def _curve_to_json(curve: Curve) -> dict[str, Any]:
    series = curve.series
    return {
        "kernel": str(series.kernel),
        "name": series.name,
        "batch_size": series.batch_size,
        "context": series.context,
        "causal": series.causal,
        "inputs": curve.inputs,
        "outputs": curve.outputs,
        "weight_bytes": curve.weight_bytes,
        "positions": curve.positions,
        "seconds": [[float(f"{s:.6g}") for s in passes] for passes in curve.seconds],
    }


def _curve_from_json(row: Mapping[str, Any]) -> Curve:
    series = Series(
        Kernel(row["kernel"]),
        _count(row["batch_size"]),
        _count(row["context"]),
        _flag(row["causal"]),
        _text(row["name"]),
    )
    positions = tuple(_count(n) for n in row["positions"])
    seconds = tuple(tuple(map(_number, passes)) for passes in row["seconds"])
    if len(positions) != len(seconds) or not positions or not all(seconds):
        raise ValueError("positions and seconds differ in number")
    if positions[0] < 1 or any(a >= b for a, b in itertools.pairwise(positions)):
        raise ValueError("positions do not ascend from 1 or more")
    if not all(math.isfinite(s) and s > 0 for passes in seconds for s in passes):
        raise ValueError("a time is not finite and above 0")
    return Curve(
        series,
        positions,
        seconds,
        _count(row["inputs"]),
        _count(row["outputs"]),
        _count(row["weight_bytes"]),
    )


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r:.80} is no number")
    return float(value)  # type: ignore[arg-type]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.80} is neither true nor false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError(f"{value!r:.80} is no name of up to {MAX_NAME} characters")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{value!r:.80} is no count from 0 to {MAX_COUNT}")
    return value
