"""What the sources of vLLM say of an architecture, without importing its model.

Importing every model takes long, and some need packages that a CPU lacks. What the probe's check
asks of a model is in the interfaces that its class lists.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

OTHER_DEVICES = frozenset({"amd", "xpu", "cpu"})
"""Folders of models for other devices than NVIDIA's."""
_STATE_METHOD = "get_model_state_cls"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model before it is loaded."""

    architecture: str
    multimodal: bool
    hybrid: bool
    attention_free: bool
    encoder_decoder: bool
    rotary_dimensions: bool
    """M-RoPE."""
    model_states: tuple[str, ...]
    """Classes of its own that prepare its inputs on the V2 runner."""
    kv_kinds: tuple[str, ...]
    """Kinds of KV cache that its own files ask for."""


@dataclass(frozen=True, slots=True)
class _Class:
    path: Path
    node: ast.ClassDef

    @property
    def bases(self) -> list[str]:
        return [ast.unparse(base).split(".")[-1].split("[")[0] for base in self.node.bases]


class Sources:
    """The installed vLLM, read as text.

    Args:
        package: its folder.
        registry: architecture -> (module, class), as vLLM's registry has it.
    """

    def __init__(self, package: Path, registry: Mapping[str, tuple[str, str]]) -> None:
        self._package = package
        self._registry = registry

    def facts(self, architecture: str) -> ModelFacts | None:
        """Of one architecture; None if this vLLM does not serve it."""
        if architecture not in self._registry:
            return None
        module, name = self._registry[architecture]
        files = self._files(module)
        classes = list(self._with_bases(name, files))
        bases = {base for each in classes for base in each.bases}
        texts = [path.read_text(encoding="utf-8") for path in files]
        return ModelFacts(
            architecture,
            multimodal="SupportsMultiModal" in bases,
            hybrid="IsHybrid" in bases,
            attention_free="IsAttentionFree" in bases,
            encoder_decoder=any(re.search(r"\bCrossAttention\(", text) for text in texts),
            rotary_dimensions="SupportsMRoPE" in bases,
            model_states=tuple(sorted(_model_states(classes))),
            kv_kinds=tuple(sorted({k for text in texts for k in self._kinds.findall(text)})),
        )

    def _files(self, module: str) -> list[Path]:
        """Of a model: one file, or a folder without those for other devices."""
        path = module if module.startswith("vllm.") else f"vllm.model_executor.models.{module}"
        folder = self._package.joinpath(*path.split(".")[1:])
        if not folder.is_dir():
            return [folder.with_suffix(".py")]
        return [
            path
            for path in sorted(folder.rglob("*.py"))
            if not OTHER_DEVICES & set(path.relative_to(folder).parts)
        ]

    def _with_bases(self, name: str, files: list[Path]) -> Iterator[_Class]:
        """A class and all that it derives from; of several of a name, the model's own."""
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            known = self._classes.get(name, [])
            own = [each for each in known if each.path in files]
            for found in (own or known)[:1]:
                yield found
                waiting += found.bases

    @cached_property
    def _classes(self) -> dict[str, list[_Class]]:
        found: dict[str, list[_Class]] = {}
        for folder in ("model_executor/models", "models"):
            for path in sorted((self._package / folder).rglob("*.py")):
                if OTHER_DEVICES & set(path.parts):
                    continue
                for node in ast.parse(path.read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.ClassDef):
                        found.setdefault(node.name, []).append(_Class(path, node))
        return found

    @cached_property
    def _kinds(self) -> re.Pattern[str]:
        text = (self._package / "v1" / "kv_cache_interface.py").read_text(encoding="utf-8")
        names = re.findall(r"^class (\w+Spec)\(", text, re.MULTILINE)
        return re.compile(rf"\b({'|'.join(names)})\(")


def _model_states(classes: list[_Class]) -> set[str]:
    return {
        name
        for each in classes
        for node in each.node.body
        if isinstance(node, ast.FunctionDef) and node.name == _STATE_METHOD
        for name in re.findall(r"\w+ModelState\b", ast.unparse(node))
    }
