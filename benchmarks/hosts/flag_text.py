"""Splits the text of ``--flags``: as a shell does, but JSON keeps its quotes."""

from __future__ import annotations

import json
import re
import shlex

import click

_OBJECT = re.compile(r"(?:^|(?<=\s))(?=[{\[])")
"""Where a word begins that is JSON."""


def split_flags(text: str) -> list[str]:
    """The words of a command line.

    >>> split_flags('--x 1 --config {"a": [2, 3]} --y "two words"')
    ['--x', '1', '--config', '{"a": [2, 3]}', '--y', 'two words']

    Raises:
        click.BadParameter: if a quote or a JSON object is not closed.
    """
    try:
        begins = _OBJECT.search(text)
        if begins is None:
            return shlex.split(text)
        before, rest = text[: begins.start()], text[begins.start() :]
        _, end = json.JSONDecoder().raw_decode(rest)
        return [*shlex.split(before), rest[:end], *split_flags(rest[end:])]
    except ValueError as error:
        raise click.BadParameter(f"--flags {text!r} cannot be read: {error}") from None
