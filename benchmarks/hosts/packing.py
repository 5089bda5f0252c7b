"""Gzips raw results."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path


def pack(source: Path, target: Path) -> None:
    """Write a gzipped copy; the source stays."""
    with source.open("rb") as plain, gzip.open(target, "wb") as packed:
        shutil.copyfileobj(plain, packed)
