"""Hands out the dashboards, rules and provisioning files that come with the package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vllm_nfp.files import write_whole

PARTS = ("grafana/*.json", "rules/*.yml", "provisioning/**/*.yml", "prometheus.yml", "compose.yaml")
"""What an operator needs, as patterns within the source folder."""


class ExportError(RuntimeError):
    """The files could not be written; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did; paths are relative to the target folder."""

    folder: Path
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    """Were there already, with the same content."""


def source_folder() -> Path:
    """Where the files lie: in the installed package, or in ``dashboards/`` of a checkout.

    Raises:
        ExportError: if neither has them.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "data", here.parents[1] / "dashboards"):
        if (folder / "grafana").is_dir():
            return folder
    raise ExportError("the dashboards are missing from this installation: install vllm-nfp again")


def export(folder: Path, force: bool = False) -> Exported:
    """Copy the files to the folder, which is made if it is missing.

    A file that is there with other content is somebody's work: nothing at all is written then,
    unless ``force`` is set.

    Raises:
        ExportError: if a file differs and ``force`` is not set, or cannot be written.
    """
    source = source_folder()
    contents = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for pattern in PARTS
        for path in sorted(source.glob(pattern))
    }
    outside = [name for name in contents if not _is_within(folder, folder / name)]
    if outside:
        raise ExportError(
            f"{folder / outside[0]} lies outside {folder}, through a symbolic link: nothing was "
            "written; remove the link, or give another folder"
        )
    try:
        unchanged = {name for name, new in contents.items() if _holds(folder / name, new)}
        differing = [
            name for name in contents if name not in unchanged and os.path.lexists(folder / name)
        ]
        if differing and not force:
            raise ExportError(
                f"{folder / differing[0]} is there and differs ({len(differing)} such "
                f"{'file' if len(differing) == 1 else 'files'}): nothing was written; give "
                "--force to overwrite, or another folder"
            )
        written = [name for name in contents if name not in unchanged]
        for name in written:
            _replace(folder / name, contents[name])
    except OSError as error:
        raise ExportError(
            f"{error.filename or folder} cannot be written ({error.strerror}): "
            "give a folder that this user may write"
        ) from None
    return Exported(folder, tuple(written), tuple(sorted(unchanged)))


def _is_within(folder: Path, path: Path) -> bool:
    return path.parent.resolve().is_relative_to(folder.resolve())


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _replace(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
