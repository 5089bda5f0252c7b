"""Kernel timings: series over N, their curves, and the samples of a model.

Plain data and their JSON; no torch, no vLLM.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from msgspec import Meta

from vllm_nfp.files import read_bytes, write_whole
from vllm_nfp.strict_json import JsonObject, encode, parse
from vllm_nfp.types.shapes import Above0

T = TypeVar("T")

MAX_SAMPLE_BYTES = 64 << 20
"""Most text that a file may hold, gzipped or not."""


MAX_NAME = 200
_LARGEST = 1 << 40
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=_LARGEST)]
"""Byte counts included."""
_FromOne: TypeAlias = Annotated[int, Meta(ge=1, le=_LARGEST)]
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
    lines = [json.dumps(header), *(encode(_Row.of(curve)) for curve in samples.curves)]
    write_whole(path, "\n".join(lines) + "\n")


def read_samples(path: Path) -> KernelSamples:
    """Read what :func:`write_samples` wrote, plain or gzipped (``.gz``).

    Raises:
        SampleError: if the file cannot be read or is no such file.
    """
    try:
        raw = read_bytes(path, MAX_SAMPLE_BYTES)
    except OSError as error:
        raise SampleError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # too large, or a path with a null character
        raise SampleError(f"{str(path)!r:.200}: {error}") from None
    try:
        text = _unpack(raw) if path.suffix == ".gz" else raw.decode()
        return _samples_of(text.splitlines())
    except ValueError as error:
        raise SampleError(f"{path} holds no kernel samples ({error!s:.300})") from None


def sample_files(directory: Path) -> list[Path]:
    """The files of samples in a directory, by name."""
    return sorted(path for end in ("jsonl", "jsonl.gz") for path in directory.glob(f"*.{end}"))


def read_directory(directory: Path) -> tuple[KernelSamples, ...]:
    """The samples of every file in a directory.

    Raises:
        SampleError: if there is no such directory, it holds no samples, or a file cannot be read.
    """
    if not os.path.isdir(directory):
        raise SampleError(f"there is no directory {directory}")
    files = sample_files(directory)
    if not files:
        raise SampleError(f"{directory} holds no .jsonl or .jsonl.gz file")
    return tuple(map(read_samples, files))


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
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        raise ValueError("empty file")
    header = _read(first[1], _Header, "header")
    curves = tuple(_read(line, _Row, f"line {number}").curve for number, line in numbered)
    return KernelSamples(header.model, header.config, header.environment, curves)


def _read(line: str, kind: type[T], where: str) -> T:
    # Integers of any size may be in a model's config.json.
    return JsonObject(where, line, parse(line)).decode(kind, pass_over=True)


@dataclass(frozen=True, slots=True)
class _Header:
    """The first line."""

    model: str
    config: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a curve.

    Raises:
        ValueError: if positions do not ascend, or there are not as many times.
    """

    kernel: Kernel
    name: Annotated[str, Meta(max_length=MAX_NAME)]
    batch_size: _Count
    context: _Count
    causal: bool
    inputs: _Count
    outputs: _Count
    weight_bytes: _Count
    positions: Annotated[tuple[_FromOne, ...], Meta(min_length=1)]
    seconds: tuple[Annotated[tuple[Above0, ...], Meta(min_length=1)], ...]

    def __post_init__(self) -> None:
        if len(self.positions) != len(self.seconds):
            raise ValueError("positions and seconds differ in number")
        if any(a >= b for a, b in itertools.pairwise(self.positions)):
            raise ValueError("positions do not ascend")

    @classmethod
    def of(cls, curve: Curve) -> _Row:
        """The curve, with six digits of its times."""
        series = curve.series
        return cls(
            series.kernel,
            series.name,
            series.batch_size,
            series.context,
            series.causal,
            curve.inputs,
            curve.outputs,
            curve.weight_bytes,
            curve.positions,
            tuple(tuple(float(f"{s:.6g}") for s in passes) for passes in curve.seconds),
        )

    @property
    def curve(self) -> Curve:
        """The curve of the line."""
        series = Series(self.kernel, self.batch_size, self.context, self.causal, self.name)
        sizes = self.inputs, self.outputs, self.weight_bytes
        return Curve(series, self.positions, self.seconds, *sizes)
