"""Compile Python files to byte code on all processors, before the first import.

    python3 benchmarks/hosts/byte_code.py FOLDER ...

The folders, and the packages of this Python that vLLM imports from elsewhere. Files whose byte code
is there and current are left as they are.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = ("torch", "transformers", "triton", "sympy", "numpy")
"""The largest ones that an image for GPUs brings along."""
LEFT_OUT = re.compile(r"/(tests?|testing/_internal)/")
"""What no server imports."""


def folders(given: Sequence[str]) -> Iterator[Path]:
    """The folders given, and those of PACKAGES that lie elsewhere and can be written."""
    yield from map(Path, given)
    for name in PACKAGES:
        found = importlib.util.find_spec(name)  # finds a package without importing it
        for place in found.submodule_search_locations or () if found else ():
            if os.access(place, os.W_OK) and not any(Path(place).is_relative_to(f) for f in given):
                yield Path(place)


def main(given: Sequence[str]) -> None:
    """Compile all and say how long it took; a file with a fault, as in templates, is left out."""
    begun, done = time.monotonic(), list(folders(given))
    for folder in done:
        compileall.compile_dir(folder, quiet=2, workers=0, maxlevels=30, rx=LEFT_OUT)
    print(f"byte code of {len(done)} folders after {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
