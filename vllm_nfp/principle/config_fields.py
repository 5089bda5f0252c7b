"""Typed reading of a config.json: any other type or size is refused in one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_nfp.principle.family import COMMON_NAMES, Family
from vllm_nfp.principle.shape import MAX_SIZE, ShapeError, shown

_PAIRED = ("num_experts", "moe_intermediate_size")
"""Fields that hold a pair where experts of text and of images differ."""


class ConfigFields:
    """The fields of one config, under Llama's names whatever the family calls them.

    A null counts as no value, and keeps the family's default away. A name with dots leads into
    objects within the config.
    """

    def __init__(self, values: Mapping[str, object], model_type: str, family: Family) -> None:
        self._values = {**values, **_inner(values, family)}
        self._model_type = model_type
        self._names = {**COMMON_NAMES, **family.names}
        self._defaults = family.defaults
        self._paired = family.special == "pairs"

    def get(self, name: str) -> object | None:
        """The value of a field, the family's default, or None."""
        for own in self._own_names(name):
            if self._values.get(own) is not None:
                return self._values[own]
        if any(own in self._values for own in self._own_names(name)):
            return None
        return self._defaults.get(name)

    def require(self, names: tuple[str, ...]) -> None:
        """Refuse a config that lacks one of the fields.

        Raises:
            ShapeError: naming every missing field as this family calls it.
        """
        missing = [" or ".join(self._own_names(name)) for name in names if self.get(name) is None]
        if missing:
            raise ShapeError(
                f"the {self._model_type or 'unnamed'} config lacks {', '.join(missing)}: "
                f"give a complete config.json"
            )

    def whole(
        self, name: str, default: int | None = None, *, least: int = 0, most: int = MAX_SIZE
    ) -> int:
        """A whole number within bounds; a list that says the same of every layer is one number.

        Raises:
            ShapeError: for another type, a value out of bounds, or no value and no default.
        """
        value = self.get(name)
        if value is None:
            value = default
        if isinstance(value, (list, tuple)) and value and self._alike(name, value):
            value = value[0]
        return self._checked(name, value, least, most)

    def flag(self, name: str, default: bool) -> bool:
        """True or false.

        Raises:
            ShapeError: for any other value.
        """
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ShapeError(f"{self._called(name)} must be true or false, not {shown(value)}")
        return value

    def items(self, name: str) -> list[object]:
        """A list; empty if the field is missing.

        Raises:
            ShapeError: for any other value.
        """
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            raise ShapeError(f"{self._called(name)} must be a list, not {shown(value)}")
        return list(value)

    def whole_items(self, name: str, most: int) -> list[int]:
        """A list of whole numbers from 0 to ``most``, or of flags; empty if the field is missing.

        Raises:
            ShapeError: for any other value.
        """
        items = self.items(name)
        if most == 1 and all(isinstance(item, bool) for item in items):
            items = [int(bool(item)) for item in items]
        return [self._checked(name, item, 0, most) for item in items]

    def per_layer(self, name: str, layers: int) -> list[object]:
        """A list with one entry for each layer; empty if the field is missing or empty.

        Raises:
            ShapeError: for any other value or length.
        """
        found = self.items(name)
        if found and len(found) != layers:
            raise ShapeError(
                f"{self._called(name)} has {len(found)} entries for {layers} layers: "
                f"it must have one for each"
            )
        return found

    def _alike(self, name: str, values: list[object] | tuple[object, ...]) -> bool:
        """Entries are all the same, or a pair of which the first is that of text."""
        paired = name in _PAIRED and self._paired and len(values) == 2
        return paired or all(item == values[0] for item in values)

    def _own_names(self, name: str) -> tuple[str, ...]:
        return self._names.get(name, (name,))

    def _called(self, name: str) -> str:
        """The name under which the config has the field."""
        own_names = self._own_names(name)
        return next((own for own in own_names if self._values.get(own) is not None), own_names[0])

    def _checked(self, name: str, value: object, least: int, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ShapeError(f"{self._called(name)} must be a whole number, not {shown(value)}")
        if not least <= value <= most:
            raise ShapeError(
                f"{self._called(name)} must lie from {least} to {most}, not {shown(value)}"
            )
        return value


def _inner(values: Mapping[str, object], family: Family) -> dict[str, object]:
    """The fields that the family's names with dots lead to."""
    found: dict[str, object] = {}
    for names in family.names.values():
        for path in names:
            outer, dot, inner = path.partition(".")
            place = values.get(outer)
            if dot and isinstance(place, Mapping) and inner in place:
                found[path] = place[inner]
    return found
