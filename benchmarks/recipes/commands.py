"""Command lines of ``vllm serve`` in a checkout of the recipes.

A recipe says which arguments every server of a model gets, which features add others, and which
strategies spread it over GPUs. A command is put together as the recipes' own site does: arguments
of the model, of its default variant, of the strategy, of the hardware, and of the features.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

GPUS, NODES = 8, 2
"""Of the machine that commands are made for: a node of 8 GPUs, or two of them."""
HARDWARE = ("hopper", "nvidia")
"""Its generation and brand, whose arguments a recipe may give."""
GENERATING = frozenset({"text", "multimodal"})
"""Tasks of models that generate text; others make pictures, speech or embeddings."""
SPECULATION = "spec_decoding"
USUAL_STRATEGY = "single_node_tp"
_PLACEHOLDER = re.compile(r"\$\{?\w+\}?|<[^>]*>")


@dataclass(frozen=True, slots=True)
class Command:
    """The flags of one server."""

    model: str
    """As in ``vllm serve MODEL``."""
    kind: str
    """``default``, ``speculating``, ``strategy NAME`` or ``guide``."""
    experts: bool
    """The recipe says that the model is a mixture of experts."""
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one file says."""

    model: str
    values: Mapping[str, Any]
    strategies: Mapping[str, Any]

    @property
    def experts(self) -> bool:
        """A mixture of experts."""
        return bool(self.values["model"].get("architecture") == "moe")

    @property
    def usual_strategy(self) -> str:
        """The one that the site opens with."""
        return str(self.values.get("default_strategy") or USUAL_STRATEGY)

    @property
    def features(self) -> Mapping[str, Any]:
        """What can be switched on."""
        found: Mapping[str, Any] = self.values.get("features") or {}
        return found

    def commands(self) -> Iterator[Command]:
        """All that it stands for."""
        usual = self.usual_strategy
        yield self._command("default", usual, speculating=False)
        if SPECULATION in self.features:
            yield self._command("speculating", usual, speculating=True)
        for name in self.values.get("compatible_strategies") or ():
            yield self._command(f"strategy {name}", name, speculating=False)
        for flags in written_out(str(self.values.get("guide") or "")):
            yield Command(self.model, "guide", self.experts, flags)

    def _command(self, kind: str, strategy: str, speculating: bool) -> Command:
        variant = (self.values.get("variants") or {}).get("default") or {}
        parts = (
            self.values["model"].get("base_args"),
            variant.get("extra_args"),
            self._of_strategy(strategy),
            self._of_hardware(strategy),
            self._of_features(speculating),
        )
        flags = tuple(str(each) for part in parts for each in part or ())
        return Command(self.model, kind, self.experts, flags)

    def _of_strategy(self, name: str) -> list[str]:
        """Arguments of a strategy; of a split server, those of its decoding half."""
        strategy = self.strategies[name]
        own = (self.values.get("strategy_overrides") or {}).get(name) or {}
        if strategy["deploy_type"] == "pd_cluster":
            mine, extra = strategy.get("decode") or {}, own.get("decode") or {}
        else:
            mine, extra = strategy, own
        return [*_arguments(mine), *_spread(strategy, extra), *_arguments(extra)]

    def _of_hardware(self, strategy: str) -> list[str]:
        own = (self.values.get("strategy_overrides") or {}).get(strategy) or {}
        for place in (own, self.values):
            kinds = place.get("hardware_overrides") or {}
            for name in HARDWARE:
                if name in kinds:
                    return list(map(str, kinds[name].get("extra_args") or ()))
        return []

    def _of_features(self, speculating: bool) -> list[str]:
        asked_for = set(self.values.get("opt_in_features") or ())
        args: list[str] = []
        for name, feature in self.features.items():
            if speculating if name == SPECULATION else name not in asked_for:
                args += map(str, _of_feature(feature))
        return args


def _arguments(block: Mapping[str, Any]) -> list[str]:
    return list(map(str, (*(block.get("vllm_args") or ()), *(block.get("extra_args") or ()))))


def _of_feature(feature: Mapping[str, Any]) -> list[Any]:
    """Its arguments; those of its default mode where it has several."""
    modes = feature.get("modes")
    if not modes:
        return list(feature.get("args") or ())
    return list(modes[feature.get("default_mode") or next(iter(modes))].get("args") or ())


def _spread(strategy: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """How a server is spread over the GPUs."""
    tensor, data = "--tensor-parallel-size", "--data-parallel-size"
    nodes = ["--nnodes", str(NODES), "--node-rank", "0"]
    if strategy["deploy_type"] == "pd_cluster":
        if own.get("parallelism") == "dep":
            return [data, str(GPUS), "--enable-expert-parallel"]
        return [tensor, str(GPUS)]
    if strategy["deploy_type"] != "multi_node":
        return [strategy["parallel_flag"], str(GPUS)]
    if strategy["parallel_flag"] == data:
        return [data, str(GPUS * NODES), "--data-parallel-size-local", str(GPUS)]
    if strategy.get("parallelism") == "tp_pp":
        return [tensor, str(GPUS), "--pipeline-parallel-size", str(NODES), *nodes]
    if strategy.get("parallelism") == "tp_dp":
        return [tensor, str(GPUS), data, str(NODES), "--data-parallel-size-local", "1"]
    return [tensor, str(GPUS * NODES), *nodes]


def written_out(guide: str) -> Iterator[tuple[str, ...]]:
    """Flags of the command lines in a text, placeholders taken for a number."""
    for line in guide.replace("\\\n", " ").splitlines():
        found = re.search(r"\bvllm serve\s+(\S.*)$", line)
        if found is None:
            continue
        try:
            words = shlex.split(found[1], comments=True)
        except ValueError:  # a sentence with a command's name in it
            continue
        flags = words if words and words[0].startswith("-") else words[1:]
        if flags or "`" not in line:
            yield tuple(_PLACEHOLDER.sub("1", word) for word in flags)


def recipes_in(folder: Path) -> list[Recipe]:
    """Those of models that generate text, by name.

    Raises:
        FileNotFoundError: if the folder is no checkout of the recipes.
    """
    strategies = {}
    for path in sorted((folder / "strategies").glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        strategies[values["name"]] = values
    paths = sorted((folder / "models").glob("*/*.yaml"))
    if not (strategies and paths):
        raise FileNotFoundError(f"{folder} holds no recipes: give a checkout of them")
    found = []
    for path in paths:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if set(values["meta"]["tasks"]) <= GENERATING:
            found.append(Recipe(str(values["model"]["model_id"]), values, strategies))
    return sorted(found, key=lambda recipe: recipe.model.casefold())
