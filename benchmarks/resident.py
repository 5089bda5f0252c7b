"""Where a process's resident memory grows: by kind of page, by mapping, and by stage of the probe.

Figures are of this process, from the kernel. Pages of files (libraries whose kernels were loaded)
are clean and can be dropped at any time; the others cannot.
"""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_SMAPS = Path("/proc/self/smaps")
_KIND = re.compile(r"^(VmRSS|RssAnon|RssFile|RssShmem):\s+(\d+) kB", re.MULTILINE)
_HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
_RSS = re.compile(r"^Rss:\s+(\d+) kB")
MIB = 1024.0
"""Kilobytes in it."""
LARGEST = 12
"""Mappings that a summary names."""

STAGES = (
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "__init__"),
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "check_kv_cache_untouched"),
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "prepare"),
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "_made"),
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "_learn_sizes"),
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "_largest_live_graph"),
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "_try_large_graphs"),
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "_warm_up"),
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "_make_piece"),
    ("vllm_nfp.engine.engine", "VllmProbeEngine", "launch"),
    ("vllm_nfp.probe.prober", "Prober", "scan"),
    ("vllm_nfp.probe.publisher", "Publisher", "start"),
)
"""Stages nest: what ``prepare`` grows by holds what its parts grow by."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Kilobytes, or by how many they grew."""

    kinds: dict[str, int]
    """VmRSS, RssAnon, RssFile, RssShmem."""
    mappings: dict[str, int]
    """By what is mapped: a file's name, [heap], or nothing."""

    def since(self, before: Growth) -> Growth:
        """The difference."""
        return Growth(_less(self.kinds, before.kinds), _less(self.mappings, before.mappings))

    def summary(self) -> dict[str, Any]:
        """In MiB, the largest mappings alone."""
        largest = sorted(self.mappings.items(), key=lambda item: -abs(item[1]))[:LARGEST]
        return {
            "mib": {kind: round(kilobytes / MIB, 1) for kind, kilobytes in self.kinds.items()},
            "mappings_mib": {name: round(kilobytes / MIB, 1) for name, kilobytes in largest},
        }


def _less(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: now.get(name, 0) - before.get(name, 0) for name in {*now, *before}}


def kinds() -> dict[str, int]:
    """Resident kilobytes by kind of page."""
    return {name: int(value) for name, value in _KIND.findall(_STATUS.read_text(encoding="ascii"))}


def resident() -> Growth:
    """What is resident now."""
    try:
        return Growth(kinds(), mappings(_SMAPS.read_text(encoding="utf-8", errors="replace")))
    except OSError:  # not every kernel lists mappings
        return Growth(kinds(), {})


def mappings(smaps: str) -> dict[str, int]:
    """Resident kilobytes by the name of what is mapped."""
    found: dict[str, int] = defaultdict(int)
    name = ""
    for line in smaps.splitlines():
        if header := _HEADER.match(line):
            name = header[1].rpartition("/")[2]
        elif size := _RSS.match(line):
            found[name] += int(size[1])
    return dict(found)


class StageGrowth:
    """Notes by how much resident memory grows in the probe's stages, while it is entered."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, int]] = {}
        self._undo: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> StageGrowth:
        for module, owner, name in STAGES:
            target = getattr(importlib.import_module(module), owner)
            original = getattr(target, name)
            self._undo.append((target, name, original))
            setattr(target, name, self._noting(f"{owner}.{name}", original))
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            target, name, original = self._undo.pop()
            setattr(target, name, original)

    def _noting(self, stage: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            before = kinds()
            try:
                return original(*args, **kwargs)
            finally:
                grown = _less(kinds(), before)
                total = self._found.setdefault(stage, {"calls": 0})
                total["calls"] += 1
                for kind, kilobytes in grown.items():
                    total[kind] = total.get(kind, 0) + kilobytes

        return noting

    def summary(self) -> dict[str, dict[str, float]]:
        """Calls, and growth in MiB, by stage."""
        return {
            stage: {k: v if k == "calls" else round(v / MIB, 1) for k, v in total.items()}
            for stage, total in self._found.items()
        }
