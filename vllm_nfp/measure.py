"""Runs an engine without a server, lets its probe scan the grid, and reads the profile.

The engine runs in a child process: its log goes to a file, its death is one sentence here, and
whatever it allocates is gone when it ends. This module knows nothing of vLLM but how to start
:mod:`vllm_nfp.adapter.offline`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_nfp.config import ENV_VAR, ProbeConfig
from vllm_nfp.plugin_list import with_plugin
from vllm_nfp.results.profile import Profile, ProfileError, load_profile, profile_file
from vllm_nfp.results.snapshot import Snapshot, SnapshotError, engine_file, read_snapshot
from vllm_nfp.types import State

POLL_SECONDS = 0.2
START_LIMIT_SECONDS = 1800.0
"""Longest start of an engine, its scan apart: large models take minutes to load."""
_ENGINE = "0"
_FAILURE = "vllm-nfp-failure: "
"""What the child's message begins with; as in vllm_nfp.adapter.offline, which needs vLLM."""


class MeasureError(RuntimeError):
    """Nothing could be measured; the message says why and where to look."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure."""

    model: str
    probe: ProbeConfig
    """Its startup_seconds bound the scan."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vllm.LLM, beside the model."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the measurement is."""

    started: bool
    """The engine has loaded its model; the scan runs."""
    pairs_done: int = 0
    pairs_missing: int = 0


def measure(
    settings: Settings,
    log_path: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Profile:
    """Start the engine, wait for its scan, and return what was found.

    Args:
        log_path: the engine's log.
        on_progress: called several times a second, from this thread.

    Raises:
        MeasureError: if the engine or its probe does not start, or nothing was measured.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-nfp-measure-") as folder:
        process = _start(settings, folder, log_path)
        try:
            _follow(process, folder, settings.probe.startup_seconds, log_path, on_progress)
        finally:
            _end(process)
        return _profile(process.returncode, folder, log_path)


def _start(settings: Settings, folder: str, log_path: Path) -> subprocess.Popen[bytes]:
    values = {**settings.engine_args, "model": settings.model}
    config = ProbeConfig(
        **{
            **{name: getattr(settings.probe, name) for name in ProbeConfig.__dataclass_fields__},
            "run_dir": folder,
            "output_dir": folder,
        }
    )
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        **os.environ,
        **with_plugin(os.environ),
        ENV_VAR: config.to_json(),
    }
    command = [sys.executable, "-m", "vllm_nfp.adapter.offline", json.dumps(values)]
    with log_path.open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _follow(
    process: subprocess.Popen[bytes],
    folder: str,
    scan_seconds: float,
    log_path: Path,
    on_progress: Callable[[Progress], None],
) -> None:
    """Wait until the child ends, telling how far it is."""
    deadline = time.monotonic() + START_LIMIT_SECONDS + scan_seconds
    while process.poll() is None:
        on_progress(_progress(_snapshot(folder)))
        if time.monotonic() > deadline:
            raise MeasureError(f"the engine did not start in time: see {log_path}")
        time.sleep(POLL_SECONDS)
    on_progress(_progress(_snapshot(folder)))


def _snapshot(folder: str) -> Snapshot | None:
    try:
        return read_snapshot(engine_file(folder, _ENGINE))
    except (OSError, SnapshotError):
        return None


def _progress(snapshot: Snapshot | None) -> Progress:
    if snapshot is None:
        return Progress(started=False)
    done = sum(snapshot.probes.get(outcome, 0) for outcome in ("startup", "measured"))
    return Progress(True, done, snapshot.missing_pairs)


def _profile(returncode: int, folder: str, log_path: Path) -> Profile:
    last = _snapshot(folder)
    if last is not None and last.state in (State.DISABLED, State.PASSIVE):
        raise MeasureError(
            f"the probe is {last.state}: {last.reason}; the engine's log is {log_path}"
        )
    if returncode != 0:
        raise MeasureError(f"the engine did not start: {_reason(returncode, log_path)}")
    try:
        profile = load_profile(profile_file(folder, _ENGINE))
    except ProfileError as error:
        raise MeasureError(
            f"the engine ended without a profile ({error}): see {log_path}"
        ) from None
    if not profile.boundaries:
        raise MeasureError(
            "no point got enough samples: give the scan more --seconds, fewer cells, "
            "or fewer --max-positions"
        )
    return profile


def _reason(returncode: int, log_path: Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        if line.startswith(_FAILURE):
            return f"{line.removeprefix(_FAILURE)}; its log is {log_path}"
    return f"it ended with code {returncode}: see {log_path}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the child and what it has started, if they still run."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        try:
            process.wait(timeout=20)
            return
        except subprocess.TimeoutExpired:
            continue
