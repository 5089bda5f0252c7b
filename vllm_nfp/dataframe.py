"""Rows of results as a pandas DataFrame; pandas is imported when it is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import pandas as pd


class NoPandasError(ValueError):
    """pandas is not installed; the message says how to install it."""


def to_dataframe(rows: Iterable[Any], kind: Any) -> pd.DataFrame:
    """Rows of one dataclass as a DataFrame, a column for each field.

    Raises:
        NoPandasError: if pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise NoPandasError(
            "to_dataframe() needs pandas, which is not installed: pip install pandas"
        ) from None
    names = [field.name for field in dataclasses.fields(kind)]
    return pandas.DataFrame(msgspec.to_builtins(list(rows)), columns=names)
