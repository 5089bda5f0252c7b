"""Print the path of a library that has NCCL's functions; fail if PyTorch has none."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = ("ncclGetVersion", "ncclGetUniqueId", "ncclCommInitRank", "ncclAllGather")
"""Some of those that vLLM's binding calls."""


def candidates() -> Iterator[Path]:
    """Libraries beside PyTorch, in NVIDIA's package, and on the system."""
    for package, pattern in (
        ("nvidia", "nccl/lib/libnccl.so*"),
        ("torch", "lib/libnccl.so*"),
        ("torch", "lib/libtorch_cuda.so"),
    ):
        found = importlib.util.find_spec(package)
        for folder in found.submodule_search_locations or () if found else ():
            yield from sorted(Path(folder).glob(pattern))
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/local/lib", "/usr/local/cuda/lib64"):
        yield from sorted(Path(folder).glob("libnccl.so*"))


def has_nccl(path: Path) -> bool:
    """Whether the library loads and has the functions."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return False
    return all(hasattr(library, name) for name in NAMES)


def main() -> None:
    """Print the first one."""
    if importlib.util.find_spec("torch"):
        import torch  # noqa: F401  (loads what its libraries need)
    path = next(filter(has_nccl, candidates()), None)
    if path is None:
        sys.exit("no library with NCCL's functions was found")
    print(path)


if __name__ == "__main__":
    main()
