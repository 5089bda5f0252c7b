"""What kernels reach of a data sheet: all constants of the kernel models in one place, and as JSON.

The constants are shares, counts and seconds, so that those of one device serve another one as an
assumption until ``vllm-nfp calibrate`` has run there. Built-in ones are in ``kernels.toml``.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any

from vllm_nfp.principle.attention import AttentionConstants
from vllm_nfp.principle.collective import LINKED_BYTES_PER_SECOND, LinkConstants
from vllm_nfp.principle.experts import ExpertConstants
from vllm_nfp.principle.gemm import Fp8GemmConstants, GemmConstants
from vllm_nfp.principle.hardware import BASES, CATALOGUE, Hardware
from vllm_nfp.principle.slow_steps import SlowStep
from vllm_nfp.principle.tiled import TiledConstants

OWN_RUNS, PUBLIC, ASSUMPTION = BASES
PARTS: Mapping[str, str] = {
    "gemm": "dense products",
    "gemm.fp8": "dense products in FP8",
    "attention": "attention",
    "attention.latent": "latent attention",
    "experts": "routed experts",
    "experts.fp8": "routed experts in FP8",
    "experts.fp8_block": "routed experts in FP8 with block scales",
    "experts.wna16": "routed experts with 4-bit integers",
    "experts.mxfp4": "routed experts in FP4",
    "link": "transfers",
}
"""Parts of the constants, and how people are told of them."""
_NARROW = ("experts.fp8", "experts.fp8_block", "experts.mxfp4")
MAIN_PARTS = ("gemm", "attention", "experts")
"""Those that decide what a device as a whole rests on."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """All constants of the kernel models.

    Attributes:
        source: what they were fitted to, for people.
        fitted: whether to kernels of the device that they are used for.
        quantized_experts: constants of routed experts by how weights are stored, where vLLM runs
            other kernels than for 16-bit weights; others take ``experts``.
        origins: what each of :data:`PARTS` rests on: own runs, public kernels or assumption.
    """

    source: str
    fitted: bool = False
    gemm: GemmConstants = field(default_factory=GemmConstants)
    attention: AttentionConstants = field(default_factory=AttentionConstants)
    experts: ExpertConstants = field(default_factory=ExpertConstants)
    link: LinkConstants = field(default_factory=LinkConstants)
    quantized_experts: Mapping[str, ExpertConstants] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def basis(self) -> str:
        """What the whole rests on: the weakest of its main parts."""
        if self.fitted:
            return OWN_RUNS
        return max(self._main_bases, key=BASES.index)

    @property
    def assumed(self) -> bool:
        """No main part rests on kernels of the device itself."""
        return not self.fitted and set(self._main_bases) == {ASSUMPTION}

    @property
    def _main_bases(self) -> list[str]:
        return [self.origins.get(part, ASSUMPTION) for part in MAIN_PARTS]

    def experts_of(self, quantization: str) -> ExpertConstants:
        """Constants of routed experts whose weights are stored so."""
        return self.quantized_experts.get(quantization, self.experts)

    def to_mapping(self) -> dict[str, Any]:
        """JSON-serializable."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of ``kernels.toml``."""

    part: str
    device: str
    """Whose kernels were timed."""
    basis: str
    data: str
    """Which kernels, for people."""
    also: tuple[str, ...]
    """Generations and devices that take the constants as an assumption."""
    constants: Mapping[str, Any]


@lru_cache(maxsize=1)
def _entries() -> tuple[_Entry, ...]:
    text = files(__package__).joinpath("kernels.toml").read_text(encoding="utf-8")
    return tuple(
        _Entry(**{"also": (), "constants": {}, **entry}) for entry in tomllib.loads(text)["kernels"]
    )


def _entry_for(part: str, hardware: Hardware) -> tuple[_Entry, str] | None:
    """The entry whose constants a device takes, and what they then rest on."""
    entries = [entry for entry in _entries() if entry.part == part]
    for entry in entries:
        if entry.device == hardware.name:
            return entry, entry.basis
    linked = hardware.link_bytes_per_second >= LINKED_BYTES_PER_SECOND
    kinds = (hardware.name, hardware.generation, "linked" if linked else "unlinked")
    for kind in kinds:
        for entry in entries:
            if kind in entry.also:
                return entry, ASSUMPTION
    return None


@lru_cache(maxsize=64)
def default_calibration(hardware_name: str) -> Calibration:
    """Constants for a device of the catalogue; for any other name those of an H100."""
    by_name = {hardware.name: hardware for hardware in CATALOGUE}
    hardware = by_name.get(hardware_name, by_name["H100-SXM"])
    known = hardware_name in by_name
    found = {part: entry for part in PARTS if (entry := _entry_for(part, hardware)) is not None}
    origins = {part: basis if known else ASSUMPTION for part, (_, basis) in found.items()}
    constants = {part: entry.constants for part, (entry, _) in found.items()}
    link_fitted = origins["link"] != ASSUMPTION
    return Calibration(
        source=_source(found, origins),
        fitted=all(origins[part] == OWN_RUNS for part in MAIN_PARTS),
        gemm=GemmConstants(
            **_with_classes(constants["gemm"]),
            fp8=Fp8GemmConstants(**_with_classes(constants.get("gemm.fp8", {}))),
        ),
        attention=AttentionConstants(
            **constants["attention"], **constants.get("attention.latent", {})
        ),
        experts=ExpertConstants(**constants["experts"]),
        link=LinkConstants(**constants["link"], fitted=link_fitted),
        quantized_experts={
            part.removeprefix("experts."): ExpertConstants(**values)
            for part, values in constants.items()
            if part.startswith("experts.")
        },
        origins=origins,
    )


def _with_classes(constants: Mapping[str, Any]) -> dict[str, Any]:
    """Constants of dense products, those of tiles and of slow steps as their classes."""
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in constants.items()
    }
    if "tiles" in found:
        found["tiles"] = TiledConstants(**found["tiles"])
    if "slow_steps" in found:
        found["slow_steps"] = tuple(SlowStep(**step) for step in found["slow_steps"])
    return found


def _source(found: Mapping[str, tuple[_Entry, str]], origins: Mapping[str, str]) -> str:
    """Where the parts come from, the parts of one source together and own runs first."""
    sources: dict[str, list[str]] = {}
    for basis in BASES:
        for part, (entry, _) in found.items():
            if origins[part] == basis:
                sources.setdefault(_told(entry, basis), []).append(part)
    return "; ".join(f"{text} ({_named(parts)})" for text, parts in sources.items())


def _told(entry: _Entry, basis: str) -> str:
    if basis == OWN_RUNS:
        return entry.data
    return f"public kernels of {entry.device}" if basis == PUBLIC else f"assumed as {entry.device}"


def _named(parts: Sequence[str]) -> str:
    """Names of parts; the kinds of FP8 and FP4 experts as one."""
    names = ["FP8 and FP4 experts" if part in _NARROW else PARTS[part] for part in parts]
    return ", ".join(dict.fromkeys(names))


H100_CALIBRATION = default_calibration("H100-SXM")
"""The constants of the H100, which all others are taken from until they have their own."""
