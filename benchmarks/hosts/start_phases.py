"""Where the start of a server went, from its log.

    python -m benchmarks.hosts.start_phases LOG ...

One line for each of vLLM's messages that end a phase, with the seconds since the one before; and
whether compiled code was found (see :mod:`benchmarks.hosts.kept_caches`).
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

PHASES = (
    ("non-default args", "imports of the API server"),
    ("Resolved architecture", "inspection of the model"),
    ("Initializing a V1 LLM engine", "imports of the engine core"),
    ("Model loading took", "weights"),
    ("Directly load AOT compilation", "compiled code is loaded"),
    ("torch.compile took", "torch.compile"),
    ("Available KV cache memory", "profiling, and graphs of the memory profile"),
    ("CUDA graph pool memory", "KV cache, warm-up of kernels, CUDA graphs"),
    ("probe active", "probe"),
    ("Starting vLLM server", "the rest"),
)
"""A text of vLLM's log, and what has ended when it is written."""
_TIME = re.compile(r"\b\d\d-\d\d (\d\d):(\d\d):(\d\d)\b")


def phases(lines: Iterable[str]) -> Iterator[tuple[str, float]]:
    """What ended, and the seconds since the message before; the first has none to be counted from.

    Of a phase whose message comes more than once, the first counts.
    """
    left, before = dict(PHASES), None
    for line in lines:
        found = _TIME.search(line)
        text = next((text for text in left if text in line), None)
        if found is None or text is None:
            continue
        hours, minutes, seconds = map(int, found.groups())
        now = datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds).total_seconds()
        yield left.pop(text), 0.0 if before is None else (now - before) % 86400
        before = now


def main(paths: Sequence[str]) -> None:
    """Print the phases of each log."""
    for path in paths:
        print(path)
        # Progress bars rewrite their line.
        text = Path(path).read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
        for name, seconds in phases(text.splitlines()):
            print(f"{seconds:6.0f} s  {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
