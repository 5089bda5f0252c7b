"""What the commands share: refusals, and the option that asks for JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Refusal(click.ClickException):
    """Bad input: one sentence and exit code 2."""

    exit_code = 2


def json_option(command: F) -> F:
    """Add ``--json`` to a command, as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
