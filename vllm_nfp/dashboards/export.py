"""Writes dashboards, rules and provisioning files, or Kubernetes objects, to a directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vllm_nfp.dashboards.kubernetes import kubernetes_files
from vllm_nfp.files import write_whole

PARTS = ("grafana/*.json", "rules/*.yml", "provisioning/**/*.yml", "prometheus.yml", "compose.yaml")
"""Files to export for Grafana and Prometheus, as patterns within the source directory."""


class ExportError(RuntimeError):
    """The files could not be written; the message names one and the remedy."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Result of an export; paths are relative to the target directory."""

    folder: Path
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    """Existed already with the same content."""


def source_folder() -> Path:
    """Directory of the files: in the installed package, or ``dashboards/`` of a checkout.

    Raises:
        ExportError: if neither has them.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "data", here.parents[1] / "dashboards"):
        if (folder / "grafana").is_dir():
            return folder
    raise ExportError("the dashboards are missing from this installation: reinstall vllm-nfp")


def export(folder: Path, force: bool = False, kubernetes: bool = False) -> Exported:
    """Write the files to ``folder``, which is created if missing.

    If a file exists with other content, nothing is written unless ``force`` is set.

    Args:
        kubernetes: objects for a cluster, in place of files that Grafana and Prometheus read.

    Raises:
        ExportError: if a file differs and ``force`` is not set, or cannot be written.
    """
    source = source_folder()
    contents = kubernetes_files(source) if kubernetes else _plain_files(source)
    outside = [name for name in contents if not _is_within(folder, folder / name)]
    if outside:
        raise ExportError(
            f"{folder / outside[0]} is outside {folder} through a symbolic link: nothing was "
            "written; remove the link or choose another directory"
        )
    try:
        unchanged = {name for name, new in contents.items() if _holds(folder / name, new)}
        differing = [
            name for name in contents if name not in unchanged and os.path.lexists(folder / name)
        ]
        if differing and not force:
            raise ExportError(
                f"{folder / differing[0]} exists and differs ({len(differing)} such "
                f"{'file' if len(differing) == 1 else 'files'}): nothing was written; pass "
                "--force to overwrite, or choose another directory"
            )
        written = [name for name in contents if name not in unchanged]
        for name in written:
            _replace(folder / name, contents[name])
    except OSError as error:
        raise ExportError(
            f"{error.filename or folder} cannot be written ({error.strerror}): "
            "choose a directory that this user can write"
        ) from None
    return Exported(folder, tuple(written), tuple(sorted(unchanged)))


def _plain_files(source: Path) -> dict[str, bytes]:
    return {
        path.relative_to(source).as_posix(): path.read_bytes()
        for pattern in PARTS
        for path in sorted(source.glob(pattern))
    }


def _is_within(folder: Path, path: Path) -> bool:
    return path.parent.resolve().is_relative_to(folder.resolve())


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _replace(path: Path, content: bytes) -> None:
    """Write the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
