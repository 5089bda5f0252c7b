"""Runs an engine without a server, lets its probe measure a table, and reads the profile.

The engine runs in a child process: its log goes to a file, its death becomes one sentence, and
everything it allocated is free when it ends.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vllm_nfp.config import ENV_VAR, ProbeConfig
from vllm_nfp.results.profile import Profile, ProfileError, load_profile, profile_file
from vllm_nfp.results.snapshot import Snapshot, SnapshotError, engine_file, read_snapshot
from vllm_nfp.start.process import FAILURE, POLL_SECONDS, Child, vllm_environment
from vllm_nfp.types import Basis, State

ENGINE = (sys.executable, "-m", "vllm_nfp.adapter.engines")
"""The child: takes the engine's arguments as JSON."""
START_LIMIT_SECONDS = 1800.0
"""Longest start of an engine without its scan: large models take minutes to load."""
_ENGINE_INDEX = "0"


class MeasureError(RuntimeError):
    """Nothing could be measured; the message gives the reason and the log."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure."""

    model: str
    probe: ProbeConfig
    """Its startup_seconds bound the scan, and by themselves what fills the KV cache before it."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vllm.LLM other than the model."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of the measurement."""

    started: bool
    """The engine has loaded its model; the scan runs, or waits."""
    pairs_done: int = 0
    pairs_missing: int = 0
    """Pairs that points of the table still lack."""
    waits_for: str = ""
    """What the scan waits for; empty: it runs."""


def measure(
    settings: Settings,
    log_path: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    command: Sequence[str] = ENGINE,
) -> Profile:
    """Start the engine, wait for its scan, and return what it measured.

    Args:
        settings: what to measure.
        log_path: the engine's log.
        on_progress: called several times a second, from this thread.
        command: of the child, see :data:`ENGINE`.

    Raises:
        MeasureError: if the engine or its probe does not start, or nothing was measured.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-nfp-measure-") as folder:
        arguments = json.dumps({**settings.engine_args, "model": settings.model})
        probe = replace(settings.probe, run_dir=folder, output_dir=folder, fill_first=True)
        environment = vllm_environment({ENV_VAR: probe.to_json()}, offline=False)
        with Child([*command, arguments], log_path, environment) as child:
            _follow(child, folder, settings.probe.startup_seconds, on_progress)
            returncode = child.returncode
        assert returncode is not None
        return _profile(returncode, folder, log_path)


def _follow(
    child: Child, folder: str, scan_seconds: float, on_progress: Callable[[Progress], None]
) -> None:
    """Report the progress until the child ends."""
    deadline = time.monotonic() + START_LIMIT_SECONDS + 2 * scan_seconds  # it may wait as long
    while child.returncode is None:
        on_progress(_progress(_snapshot(folder)))
        if time.monotonic() > deadline:
            raise MeasureError(f"the engine did not start in time: see {child.log}")
        time.sleep(POLL_SECONDS)
    on_progress(_progress(_snapshot(folder)))


def _snapshot(folder: str) -> Snapshot | None:
    try:
        return read_snapshot(engine_file(folder, _ENGINE_INDEX))
    except (OSError, SnapshotError):
        return None


def _progress(snapshot: Snapshot | None) -> Progress:
    if snapshot is None:
        return Progress(started=False)
    done = sum(snapshot.probes.get(outcome, 0) for outcome in ("startup", "measured"))
    waits_for = snapshot.reason if snapshot.state is State.WARMING else ""
    return Progress(True, done, snapshot.missing_pairs, waits_for)


def _profile(returncode: int, folder: str, log_path: Path) -> Profile:
    last = _snapshot(folder)
    if last is not None and last.state in (State.DISABLED, State.PASSIVE):
        raise MeasureError(
            f"the probe is {last.state}: {last.reason}; the engine's log is {log_path}"
        )
    if returncode != 0:
        raise MeasureError(f"the engine did not start: {_reason(returncode, log_path)}")
    try:
        profile = load_profile(profile_file(folder, _ENGINE_INDEX))
    except ProfileError as error:
        raise MeasureError(
            f"the engine ended without a profile ({error}): see {log_path}"
        ) from None
    # Without a pair the profile holds the prediction alone.
    if not any(row.positions > 1 and row.basis is Basis.MEASURED for row in profile.curves):
        raise MeasureError(
            "nothing was measured: give the scan more --seconds, fewer --batch-sizes and "
            f"--contexts, or fewer --max-positions; the engine's log is {log_path}"
        )
    return profile


def _reason(returncode: int, log_path: Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        if line.startswith(FAILURE):
            return f"{line.removeprefix(FAILURE)}; its log is {log_path}"
    return f"it ended with code {returncode}: see {log_path}"
