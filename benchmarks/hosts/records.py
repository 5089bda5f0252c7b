"""Reads the files of a record."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unpacked(record: Path, pattern: str = "*") -> Iterator[Path]:
    """Files of a record, those that are kept compressed as they were."""
    with tempfile.TemporaryDirectory() as folder:
        for path in record.glob(pattern):
            content = path.read_bytes()
            if path.suffix == ".gz":
                (Path(folder) / path.stem).write_bytes(gzip.decompress(content))
            else:
                (Path(folder) / path.name).write_bytes(content)
        yield Path(folder)
