"""Entries of ``kernels.toml``, as text."""

from __future__ import annotations

from collections.abc import Mapping


def as_toml(part: str, device: str, values: Mapping[str, float]) -> str:
    """An entry, without what people add by hand."""
    constants = "".join(f"{name} = {value:.4g}\n" for name, value in values.items())
    named = part.removesuffix(".tiles")
    table = "constants" if named == part else "constants.tiles"
    return (
        f'\n[[kernels]]\npart = "{named}"\ndevice = "{device}"\nbasis = "public kernels"\n'
        f"\n[kernels.{table}]\n{constants}"
    )
