"""Whether the code that a record rests on has changed since its run."""

from __future__ import annotations

import ast
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
    """Whether what any of the paths does differs from the commit, uncommitted changes included.

    Comments, docstrings and the layout of Python files do not count.
    """
    if commit is None or not (root / ".git").exists():
        return Age.UNKNOWN
    if _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        return Age.UNKNOWN
    names = _git(root, "diff", "--name-only", "--no-renames", commit, "--", *paths)
    if names is None:
        return Age.UNKNOWN
    return Age.STALE if any(_differs(root, commit, n) for n in names.splitlines()) else Age.CURRENT


def _differs(root: Path, commit: str, name: str) -> bool:
    then, path = _git(root, "show", f"{commit}:{name}"), root / name
    if then is None or not path.exists() or not name.endswith(".py"):
        return True
    try:
        return what_runs(then) != what_runs(path.read_text(encoding="utf-8"))
    except SyntaxError:
        return True


def what_runs(source: str) -> str:
    """A Python file without comments, docstrings and layout.

    Raises:
        SyntaxError: if it is none.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    """A string by itself does nothing: a docstring, or the text below a field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails."""
    command = ["git", "--no-pager", *arguments]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
