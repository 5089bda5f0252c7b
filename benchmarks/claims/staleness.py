"""Whether the code that a figure rests on has changed since its run."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

GIT_SECONDS = 30


class Age(StrEnum):
    """Of a claim's code."""

    CURRENT = "current"
    STALE = "stale"
    UNKNOWN = "unknown"
    """No commit was recorded, or git does not have it: an archive, or a shallow clone."""


def age(root: Path, commit: str | None, paths: Sequence[str]) -> Age:
    """Whether any of the paths differs from the commit, uncommitted changes included."""
    if commit is None or not (root / ".git").exists():
        return Age.UNKNOWN
    if _git(root, "cat-file", "-e", f"{commit}^{{commit}}") != 0:
        return Age.UNKNOWN
    return {0: Age.CURRENT, 1: Age.STALE}.get(
        _git(root, "diff", "--quiet", commit, "--", *paths), Age.UNKNOWN
    )


def _git(root: Path, *arguments: str) -> int:
    command = ["git", "--no-pager", *arguments]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return -1
    return done.returncode
