"""Keeps what vLLM has compiled, for the next start on another machine.

    python3 benchmarks/hosts/kept_caches.py keep FOLDER     # at the end of a session on a GPU host
    python3 benchmarks/hosts/kept_caches.py restore FOLDER  # at the beginning of the next one

A server that finds its model inspected, its graphs compiled and its Triton kernels built skips the
longest parts of its start. vLLM finds them by hashes of its settings and sources, in which the path
of the model's folder counts (``ModelConfig.compute_hash``), and compiled code names files by their
paths. So the home directory, the place of vLLM's package and the model's folder have to be the
same: :func:`benchmarks.serving.shapes.shared_model` gives the latter.

``keep`` writes parts of one archive, each below ``--part-mib``, and ``restore`` joins them. What
lies in the caches already stays as it is. Files are named by their paths below the home directory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

CACHES = (".cache/vllm", ".triton/cache")
"""Below the home directory: model inspection and torch.compile of vLLM; kernels of Triton."""
PART = "caches.tar.xz."
PART_MIB = 15.0
MIB = 1 << 20


class CacheError(RuntimeError):
    """The caches cannot be kept or restored; the message is one sentence."""


def keep(folder: Path, home: Path, part_bytes: int) -> list[Path]:
    """Write the caches below ``home`` into parts; those of an earlier call are replaced.

    Raises:
        CacheError: if there are no caches, or they cannot be packed.
    """
    found = [name for name in CACHES if (home / name).is_dir()]
    if not found:
        raise CacheError(f"no caches below {home}: none of {', '.join(CACHES)} is a directory")
    folder.mkdir(parents=True, exist_ok=True)
    for old in _parts(folder):
        old.unlink()
    # Files that a running server is writing have a name of their own until they are whole.
    command = ["tar", "-C", str(home), "--exclude=*.tmp", "-cf", "-", *found]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as tar,
        subprocess.Popen(["xz", "-T0", "-6"], stdin=tar.stdout, stdout=subprocess.PIPE) as xz,
    ):
        assert tar.stdout is not None and xz.stdout is not None
        tar.stdout.close()  # xz alone holds it now, so that tar ends if xz does
        written = []
        for number, piece in enumerate(_pieces(xz.stdout, part_bytes)):
            written.append(folder / f"{PART}{number:02}")
            written[-1].write_bytes(piece)
    if tar.returncode > 1 or xz.returncode:  # 1: a file changed while tar read it
        raise CacheError(f"tar ended with code {tar.returncode}, xz with {xz.returncode}")
    return written


def restore(folder: Path, home: Path) -> int:
    """Unpack what :func:`keep` wrote; the number of files below ``home`` afterwards.

    Raises:
        CacheError: if parts are missing or broken.
    """
    parts = _parts(folder)
    if not parts:
        raise CacheError(f"{folder} holds no {PART}00: give the folder that keep has written")
    numbers = [path.name.removeprefix(PART) for path in parts]
    if numbers != [f"{number:02}" for number in range(len(parts))]:
        raise CacheError(f"{folder} lacks a part: it holds {', '.join(numbers)}")
    home.mkdir(parents=True, exist_ok=True)
    command = ["tar", "-C", str(home), "--skip-old-files", "-xJf", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as tar:
        assert tar.stdin is not None
        with suppress(BrokenPipeError):  # tar has ended; its return code says why
            for part in parts:
                tar.stdin.write(part.read_bytes())
            tar.stdin.close()
    if tar.returncode:
        raise CacheError(f"parts in {folder} cannot be unpacked: tar ended with {tar.returncode}")
    return sum(len(files) for name in CACHES for _, _, files in os.walk(home / name))


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PART}[0-9][0-9]"))


def _pieces(stream: IO[bytes], size: int) -> Iterator[bytes]:
    while piece := stream.read(size):
        yield piece


def main(arguments: Sequence[str]) -> int:
    """Keep or restore; the exit code."""
    parser = argparse.ArgumentParser(description="Keep vLLM's caches for the next machine.")
    parser.add_argument("action", choices=("keep", "restore"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part-mib", type=float, default=PART_MIB, help="Size of a part, at most.")
    given = parser.parse_args(arguments)
    try:
        if given.action == "keep":
            parts = keep(given.folder, Path.home(), int(given.part_mib * MIB))
            size = sum(part.stat().st_size for part in parts)
            print(f"kept {size / MIB:.1f} MiB in {len(parts)} parts in {given.folder}")
        else:
            print(f"restored caches: {restore(given.folder, Path.home())} files")
    except (CacheError, OSError) as error:
        print(f"kept_caches: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
