"""What the commands share: refusals, options, and the reading of arguments."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vllm_nfp.profile import Profile, ProfileError, load_profile
from vllm_nfp.text import printable
from vllm_nfp.web import hide_password

MOST_REFUSAL = 2000
"""Characters of a refusal: the longest sentence of ours, with the names that it quotes."""

F = TypeVar("F", bound=Callable[..., Any])
N = TypeVar("N", int, float)


class Refusal(click.ClickException):
    """Bad input: one sentence and exit code 2.

    The sentence may quote paths, URLs and names that steer a terminal, or hold a password: neither
    reaches the screen.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(hide_password(printable(" ".join(message.split()), MOST_REFUSAL)))


def json_option(command: F) -> F:
    """Add ``--json`` to a command, as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def parse_list(
    text: str, item: Callable[[str], N], flag: str, example: str = "1,8,32"
) -> tuple[N, ...]:
    """Numbers with commas between them.

    Args:
        example: what a refusal shows.

    Raises:
        Refusal: naming the flag and what is no number.
    """
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(item(part.strip()))
        except ValueError:
            kind = "whole number" if item is int else "number"
            raise Refusal(
                f"{flag} holds {part.strip()!r:.60}, which is no {kind}: "
                f"give numbers as in {example}"
            ) from None
    return tuple(numbers)


def check_output(path: Path) -> None:
    """Prove before the work that a file can be put there.

    Raises:
        Refusal: if its folder is missing or cannot be written.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise Refusal(f"the folder of {path} does not exist: make it, or give another path")
    if not os.access(folder, os.W_OK):
        raise Refusal(f"the folder of {path} cannot be written: give another path")


def read_profile(path: Path) -> Profile:
    """A profile, or a refusal."""
    try:
        return load_profile(path)
    except ProfileError as error:
        raise Refusal(str(error)) from None
