"""Looks the declared targets up in the sources of a vLLM, of which nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from vllm_nfp.adapter.targets import TARGETS, Target

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def installed_tree() -> Path | None:
    """The folder that holds the installed ``vllm`` package; None if there is none."""
    spec = importlib.util.find_spec("vllm")
    places = () if spec is None else spec.submodule_search_locations or ()
    return next((Path(place).parent for place in places), None)


def file_of(tree: Path, module: str) -> Path | None:
    """The file of a module below ``tree``; None if there is no such module."""
    base = tree.joinpath(*module.split("."))
    places = (base.with_suffix(".py"), base / "__init__.py")
    return next((place for place in places if place.is_file()), None)


def has_extension_point() -> bool:
    """Whether the installed vLLM has the extension point of ``patches/``."""
    tree = installed_tree()
    return tree is not None and file_of(tree, "vllm.v1.worker.step_observer") is not None


def missing_targets(tree: Path, release: tuple[int, int] | None) -> list[Target]:
    """Targets of vLLM's that are replaced in this release, and that its sources lack.

    Args:
        tree: the folder that holds the ``vllm`` package.
        release: the sources' release; None if they have no number.
    """
    modules: dict[str, ast.Module | None] = {}

    def parsed(name: str) -> ast.Module | None:
        if name not in modules:
            path = file_of(tree, name)
            text = None if path is None else path.read_text(encoding="utf-8")
            modules[name] = None if text is None else ast.parse(text)
        return modules[name]

    looked_up = (t for t in TARGETS if t.module.split(".")[0] == "vllm" and t.is_in(release))
    return [
        target
        for target in looked_up
        if (module := parsed(target.module)) is None or not _defines(module.body, target.path)
    ]


def _defines(body: Iterable[ast.stmt], path: tuple[str, ...]) -> bool:
    name, *rest = path
    for node in _flat(body):
        if isinstance(node, ast.ImportFrom):
            if not rest and any(name == (alias.asname or alias.name) for alias in node.names):
                return True
        elif isinstance(node, _Definition) and node.name == name:
            return not rest or _defines(node.body, tuple(rest))
        elif not rest and name in _assigned(node):
            return True
    return False


def _assigned(node: ast.stmt) -> list[str]:
    """Names of variables that the statement gives a value."""
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    else:
        targets = []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class, with those under its conditions."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _flat((*node.body, *node.orelse))
