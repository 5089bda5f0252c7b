"""What a worker knows at one moment, and the file that hands it to the API servers.

One file for each engine, replaced whole, so that a reader sees the old state or the new one.
JSON and not pickle: nothing that is read here can run code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import msgspec

from vllm_nfp.files import FileError, read_bytes, write_whole
from vllm_nfp.results.verification import VerificationReport
from vllm_nfp.strict_json import decode_own, encode
from vllm_nfp.types import (
    Boundary,
    CurvePoint,
    ExpertRouting,
    LayerHistogram,
    LayerLatency,
    LiveStep,
    Prediction,
    ServerInfo,
    State,
    StepLatency,
)
from vllm_nfp.types.shapes import Count, Whole

SCHEMA = 1
MAX_FILE_BYTES = 16 << 20
"""Ten times the file of the largest default table. Decoding holds the interpreter for some 3 ms a
MiB, as measured on one core of a server."""
FILE_PATTERN = "engine-*.json"
ENGINE_INDEX = re.compile("[0-9]{1,9}")
MOST_ROWS = 1 << 16
"""Largest table: what the largest allowed grid of cells and positions gives."""
MOST_WORDS = 32
"""Ways of execution and outcomes, together; there are some ten."""
_WORD = re.compile("[a-z0-9_]{1,40}")
_TABLE = msgspec.Meta(max_length=MOST_ROWS)


class _Head(msgspec.Struct):
    """What says how to read the rest."""

    schema: int


class OfEngine(Protocol):
    """What one engine hands over."""

    @property
    def engine(self) -> str:
        """Index of the data-parallel engine."""
        ...


T = TypeVar("T", bound=OfEngine)


class SnapshotError(ValueError):
    """A hand-over file that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that one engine's probe reports."""

    model_name: str
    engine: str
    state: State
    reason: str = ""
    """Why the probe is disabled or passive, what its first scan waits for, or what has to be said
    of that scan; empty otherwise."""
    runner: str = ""
    server: ServerInfo | None = None
    """Device, types and versions; None before the start has found them."""
    updated_unix_seconds: float = 0.0
    updated_monotonic_seconds: float = 0.0
    """Of the host's monotonic clock, which all its processes share: tells the age whatever the wall
    clock does; 0: not told."""
    probes: Mapping[str, Whole] = dataclasses.field(default_factory=dict)
    """Pairs of probes, pieces that they need, and refused tries, by outcome."""
    probe_seconds: float = 0.0
    """GPU time (host time on a CPU) that probes took while serving."""
    idle_probe_seconds: float = 0.0
    """Time that probes took while no request was there."""
    startup_seconds: float = 0.0
    """Time that the probe added to the start."""
    overhead_ratio: float = 0.0
    overhead_budget: float = 0.0
    """Maximum fraction of serving time for probes, as configured."""
    boundaries: Annotated[tuple[Boundary, ...], _TABLE] = ()
    curves: Annotated[tuple[CurvePoint, ...], _TABLE] = ()
    predictions: Annotated[tuple[Prediction, ...], _TABLE] = ()
    layers: Annotated[tuple[LayerHistogram, ...], _TABLE] = ()
    layer_times: Annotated[tuple[LayerLatency, ...], _TABLE] = ()
    """For profiles alone; empty in the file that /metrics reads."""
    live_curves: Annotated[tuple[CurvePoint, ...], _TABLE] = ()
    """The whole step's curves at the real context of the last step: of its real batch size, and of
    each reported one."""
    live_boundaries: Annotated[tuple[Boundary, ...], _TABLE] = ()
    """The whole step's boundaries at the real batch size and context of the last step."""
    prior: str = ""
    """What answers rest on where nothing was measured: predicted, generic or profile."""
    prior_reason: str = ""
    """Why it is generic, or why an earlier profile was refused; empty otherwise."""
    jumps: Count = 0
    """Times that new pairs contradicted the old ones so much that these lost their weight."""
    step_ratio: float = 0.0
    """Share of real steps that a probe has delayed."""
    budget_slack: float = 1.0
    """Part of the budget that the load leaves: 0 while requests wait."""
    missing_pairs: Whole = 0
    """Pairs that points which matter still lack."""
    live: LiveStep | None = None
    experts: ExpertRouting | None = None
    """How real steps reached the experts; None until it was counted, or without experts."""
    verification: VerificationReport | None = None
    """Of vLLM's adaptive verification; None where the server has none."""
    steps: Annotated[tuple[StepLatency, ...], _TABLE] = ()
    """Real steps, timed passively."""
    skipped_cells: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Cells that cannot be probed here, as "B=32 L=16384", and why."""
    graph_bytes: Whole = 0
    """GPU memory that the probe holds: buffers, CUDA graphs, and what these add to the memory of
    vLLM's own."""
    host_bytes: Whole = 0
    """Growth of the worker's own resident memory while the probe was attached; see
    :func:`vllm_nfp.probe.memory.host_bytes`."""
    schema: int = SCHEMA


def hand_over_file(run_dir: str, kind: str, engine: str) -> Path:
    """A hand-over file of one engine; the name is made from the kind and digits alone.

    Raises:
        SnapshotError: for an engine index that is not a number.
    """
    if not ENGINE_INDEX.fullmatch(engine):
        raise SnapshotError(f"engine index {engine!r:.80} is not a number")
    return Path(run_dir) / f"{kind}-{engine}.json"


def engine_file(run_dir: str, engine: str) -> Path:
    """The hand-over file of one engine's probe.

    Raises:
        SnapshotError: for an engine index that is not a number.
    """
    return hand_over_file(run_dir, "engine", engine)


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Replace the file whole: a reader never sees half of it."""
    write_whole(path, encode(snapshot))


def read_snapshot(path: Path) -> Snapshot:
    """Read a hand-over file.

    What it says becomes labels of metrics: their values are short words, and their number is
    bounded.

    Raises:
        SnapshotError: if it is too large, no JSON, of another schema, of other types, or would
            make too many or strange labels.
        OSError: if it cannot be read, or is a link.
    """
    snapshot = read_hand_over(path, Snapshot, SCHEMA)
    words = {*snapshot.probes, *(point.execution for point in snapshot.curves)}
    check_words(path.name, words | ({snapshot.prior} - {""}))
    for histogram in snapshot.layers:
        if len(histogram.counts) != len(histogram.bounds_seconds) + 1:
            raise SnapshotError(f"{path.name} holds a histogram whose bounds and counts differ")
    return snapshot


def read_hand_over(path: Path, kind: type[T], schema: int) -> T:
    """The dataclass in a hand-over file, which must have the fields ``schema`` and ``engine``.

    Raises:
        SnapshotError: if it is too large, no JSON, of another schema, of other types, or holds an
            engine index that is not a number.
        OSError: if it cannot be read, or is a link.
    """
    try:
        raw = read_bytes(path, MAX_FILE_BYTES, follow_links=False)
        # The schema first: what another version has written may differ in anything else.
        if decode_own(raw, _Head, path.name).schema != schema:
            raise SnapshotError(f"{path.name} is not a snapshot of schema {schema}")
        decoded = decode_own(raw, kind, path.name)
    except FileError as error:
        raise SnapshotError(str(error)) from None
    if not ENGINE_INDEX.fullmatch(decoded.engine):
        raise SnapshotError(f"{path.name} has the engine index {decoded.engine!r:.80}, no number")
    return decoded


def check_words(where: str, words: Collection[str]) -> None:
    """Refuse what would make strange labels, or too many kinds of them.

    Raises:
        SnapshotError: naming the label.
    """
    strange = sorted(word for word in words if not _WORD.fullmatch(word))
    if strange:
        raise SnapshotError(f"{where} holds the strange label {strange[0]!r:.80}")
    if len(words) > MOST_WORDS:
        raise SnapshotError(f"{where} holds more than {MOST_WORDS} kinds of labels")
