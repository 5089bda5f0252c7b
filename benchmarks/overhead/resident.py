"""Where memory grows: by kind of page, by mapping, and by stage of the probe; the GPU's as well.

Figures of the host are of this process, from the kernel. Pages of files (libraries whose kernels
were loaded) are clean and can be dropped at any time; the others cannot. Of a GPU they are what
PyTorch has reserved for this process, and what everybody beside it holds of the device: the driver,
and other processes.
"""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_STATUS = Path("/proc/self/status")
_SMAPS = Path("/proc/self/smaps")
_KIND = re.compile(r"^(VmRSS|RssAnon|RssFile|RssShmem):\s+(\d+) kB", re.MULTILINE)
_HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
_RSS = re.compile(r"^Rss:\s+(\d+) kB")
_OPERATOR = "operator "
MIB = 1024.0
"""Kilobytes in it."""
LARGEST = 12
"""Mappings that a summary names."""

_ENGINE = "vllm_nfp.probe.engine"
STAGES = (
    (_ENGINE, "ProbeEngine", "__init__"),
    (_ENGINE, "ProbeEngine", "check_kv_cache_untouched"),
    (_ENGINE, "ProbeEngine", "prepare"),
    (_ENGINE, "ProbeEngine", "give_back_cache"),
    (_ENGINE, "ProbeEngine", "launch"),
    ("vllm_nfp.probe.kv_check", "KvCacheCheck", "checksum"),
    ("vllm_nfp.probe.kv_proof", "Prover", "begin"),
    ("vllm_nfp.probe.graph_sizes", "GraphSizes", "learn"),
    ("vllm_nfp.probe.graph_sizes", "GraphSizes", "_try_large_graphs"),
    ("vllm_nfp.probe.capture", "Capturer", "warm_up"),
    ("vllm_nfp.probe.prepare", "Preparer", "make_piece"),
    ("vllm_nfp.probe.launcher", "Launcher", "_hold_stream"),
    ("vllm_nfp.probe.device_memory", "", "largest_free_block"),
    ("vllm_nfp.probe.batch", "BatchBuilder", "build"),
    ("vllm_nfp.probe.batch", "ProbeBatch", "fill"),
    ("vllm_nfp.probe.forward", "Forward", "metadata"),
    ("vllm_nfp.probe.forward", "Forward", "run_model"),
    ("vllm_nfp.probe.forward", "Forward", "run_head"),
    ("vllm_nfp.probe.forward", "Forward", "run_modules"),
    ("vllm_nfp.probe.cuda_graph", "Graph", "capture"),
    ("vllm_nfp.probe.cuda_graph", "Graph", "replay"),
    ("vllm_nfp.session.first_scan", "", "scan"),
    ("vllm_nfp.session.publisher", "Publisher", "publish"),
)
"""Stages nest: what ``prepare`` grows by holds what its parts grow by."""
EAGER = ("checksum", "begin", "fill", "metadata", "run_head", "run_modules")
"""Stages whose growth is also recorded by operator: they run no compiled code."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Kilobytes, or by how many they grew."""

    kinds: dict[str, int]
    """VmRSS, RssAnon, RssFile, RssShmem; with a GPU GpuReserved and GpuBeside."""
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
    """Resident kilobytes by kind of page, and the GPU's once this process has used it."""
    pages = _KIND.findall(_STATUS.read_text(encoding="ascii"))
    return {name: int(kilobytes) for name, kilobytes in pages} | gpu_kinds()


def gpu_kinds() -> dict[str, int]:
    """Kilobytes of the GPU that PyTorch has reserved, and that are held beside it; or nothing."""
    if not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    return {"GpuReserved": reserved >> 10, "GpuBeside": (total - free - reserved) >> 10}


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
    """Notes by how much resident memory grows in the probe's stages, while it is entered.

    Args:
        operators: record the operators of eager stages as well, which slows them down.
    """

    def __init__(self, operators: bool = False) -> None:
        self._operators = operators
        self._found: dict[str, dict[str, int]] = {}
        self._undo: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> StageGrowth:
        for module, owner, name in STAGES:
            target: Any = importlib.import_module(module)
            target = getattr(target, owner) if owner else target
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
                with self._by_operator(stage):
                    return original(*args, **kwargs)
            finally:
                self._add(stage, before)

        return noting

    def _by_operator(self, stage: str) -> AbstractContextManager[Any]:
        is_eager = stage.rpartition(".")[2] in EAGER
        return _Operators(self._add) if self._operators and is_eager else nullcontext()

    def _add(self, stage: str, before: dict[str, int]) -> None:
        total = self._found.setdefault(stage, {"calls": 0})
        total["calls"] += 1
        for kind, kilobytes in _less(kinds(), before).items():
            total[kind] = total.get(kind, 0) + kilobytes

    def summary(self) -> dict[str, dict[str, float]]:
        """Calls, and growth in MiB, by stage."""
        return {
            stage: {k: v if k == "calls" else round(v / MIB, 1) for k, v in total.items()}
            for stage, total in self._found.items()
            if not stage.startswith(_OPERATOR) or max(map(abs, _kilobytes(total))) > MIB / 4
        }


def _kilobytes(total: dict[str, int]) -> list[int]:
    return [kilobytes for kind, kilobytes in total.items() if kind != "calls"]


class _Operators(TorchDispatchMode):  # type: ignore[misc]
    """Notes the growth of each operator."""

    def __init__(self, add: Callable[[str, dict[str, int]], None]) -> None:
        super().__init__()
        self._add = add

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = kinds()
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._add(f"{_OPERATOR}{func}", before)
