"""Which module has which format: rules in order, of which the first that names it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_nfp.principle.weights.expressions import MAX_EFFORT
from vllm_nfp.principle.weights.names import Names
from vllm_nfp.principle.weights.scheme import GIVE, Scheme, UnreadError, strings

_IGNORE_KEYS = (
    "ignored_layers",
    "modules_to_not_convert",
    "ignore",
    "exclude_modules",
    "exclude",
    "llm_int8_skip_modules",
)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a checkpoint stores its linear modules.

    Attributes:
        named: names of modules and their format; None: 16 bits.
        rest: format of modules that nothing names; None: 16 bits.
        experts: format of routed experts, if it is another.
        head: the LM head is stored like the rest where nothing names it.
    """

    named: tuple[tuple[Names, Scheme | None], ...]
    rest: Scheme | None
    experts: Scheme | None = None
    head: bool = False

    def scheme(self, index: int, module: str) -> Scheme | None:
        """Format of a layer's module; None: 16 bits."""
        if self.experts is not None and ".experts." in module:
            return self.experts
        for names, scheme in self.named:
            if names.match(index, module):
                return scheme
        return self.rest

    def of_head(self) -> Scheme | None:
        """Format of the LM head."""
        for names, scheme in self.named:
            if names.names_head:
                return scheme
        return self.rest if self.head else None

    def check_effort(self, layers: int) -> None:
        """Refuse lists that would take long.

        Raises:
            UnreadError: for too many expressions.
        """
        if sum(names.effort(layers) for names, _ in self.named) > MAX_EFFORT:
            raise UnreadError(
                f"quantization_config has too many expressions for {layers} layers: {GIVE}"
            )


def ignored(given: Mapping[str, object]) -> list[str]:
    """Modules that a config leaves in 16 bits, under any of the formats' names."""
    return [entry for key in _IGNORE_KEYS for entry in strings(given, key)]


def skipping(names: list[str]) -> tuple[tuple[Names, Scheme | None], ...]:
    """A rule that leaves these modules in 16 bits."""
    return ((Names(names), None),) if names else ()


def uniform(given: Mapping[str, object], scheme: Scheme, head: bool = False) -> Rules:
    """One format for all modules but the ignored ones."""
    return Rules(skipping(ignored(given)), scheme, head=head or given.get("lm_head") is True)
