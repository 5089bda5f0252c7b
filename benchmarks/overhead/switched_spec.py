"""The server of benchmarks.overhead.switched: its settings, its variants, and how it is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.overhead.switched_core import BOARD_VARIABLE, CONTROL_VARIABLE, SCHEDULER
from benchmarks.overhead.switched_drafts import EXTENSION as DRAFTS_EXTENSION
from benchmarks.overhead.switched_drafts import Drafts
from benchmarks.overhead.switched_summary import SATURATED
from benchmarks.serving import server
from benchmarks.serving.saturation import Traffic
from vllm_nfp.start.ports import free_port

EXTENSION = "benchmarks.overhead.worker_extension.SwitchedHooks"
CONTROL = "control"
PROBES: Mapping[str, Mapping[str, object]] = {
    "passive": {"passive": True},
    "active": {},
    "raised": {"overhead_budget": 0.5, "step_share": 0.5},
    CONTROL: {"draft_control": True},
}
"""Settings of the probe, beyond the defaults, by variant. Of the steps of a loaded server a half
and more read a prompt, and none of these is delayed: so many a share has to allow for hundreds of
delayed steps in minutes."""
BOARD = "board"


@dataclass(frozen=True, slots=True)
class Settings(Traffic):
    """What is measured."""

    turn_seconds: float
    saturated_turn_seconds: float
    warmup_turns: int
    variants: tuple[str, ...]
    probe: Mapping[str, object]
    flags: tuple[str, ...]
    within: float
    delayed: int
    """Steps that a variant delays at a load, before others have that load for themselves."""
    draft: Drafts | None = None
    attach_only: bool = False

    def turn(self, share: float) -> float:
        """Seconds of a turn at this load."""
        return self.saturated_turn_seconds if share == SATURATED else self.turn_seconds


def probe_of(settings: Settings, variant: str, folder: Path) -> dict[str, Any]:
    """All settings of a variant's probe; the control has to know which lengths have graphs."""
    drafts = settings.draft if variant == CONTROL else None
    lengths = {} if drafts is None else {"draft_lengths": list(drafts.lengths)}
    return {**settings.probe, **PROBES[variant], **lengths, "run_dir": str(folder / variant)}


def spec_of(settings: Settings, model: Path, folder: Path, log: Path) -> server.Spec:
    """The server; its engine core is watched where it has something of the package to run."""
    extra, flags = {"VLLM_SERVER_DEV_MODE": "1"}, [*settings.flags, "--no-enable-prefix-caching"]
    if settings.draft is not None:
        flags += settings.draft.flags(settings.shape, settings.layers)
        flags += ["--worker-extension-cls", DRAFTS_EXTENSION, "--scheduler-cls", SCHEDULER]
        extra[BOARD_VARIABLE] = str(folder / BOARD)
    else:
        flags += ["--worker-extension-cls", EXTENSION]
    if CONTROL in settings.variants:
        extra[CONTROL_VARIABLE] = json.dumps(probe_of(settings, CONTROL, folder))
    return server.Spec(model, log, free_port(), tuple(flags), extra=extra)
