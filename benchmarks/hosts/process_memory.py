"""Memory of one process, as Linux tells it."""

from __future__ import annotations

import os
from pathlib import Path


def process_mib(folder: Path) -> float:
    """Resident memory in MiB.

    Args:
        folder: of the process, under /proc.

    Raises:
        OSError: if it has ended.
    """
    pages = int((folder / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
