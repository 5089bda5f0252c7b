"""What the commands share: refusals, options, and the reading of arguments."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from tempfile import NamedTemporaryFile, mkdtemp
from typing import Any, NoReturn, TypeVar

import click
from click.exceptions import NoArgsIsHelpError

from vllm_nfp.profile import Profile, ProfileError, load_profile
from vllm_nfp.text import hint, printable, same_name
from vllm_nfp.typed_json import check_replaceable
from vllm_nfp.web import hide_password

MOST_REFUSAL = 2000
"""Characters of a refusal: the longest sentence of ours, with the names that it quotes."""
LEAST_ROOM = 1 << 16
"""Bytes that a folder must take before the work begins; a profile has some hundred thousand."""

_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

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


class Commands(click.Group):
    """A group of commands whose errors are one sentence each.

    These are wrong options, and output that cannot be written. A terminal that lacks a letter shows
    ``?`` in its place. SIGTERM and SIGHUP (a closed terminal) end a command as Ctrl-C does: what it
    has started ends with it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command; see :meth:`click.Group.parse_args`."""
        with _one_sentence():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Read a command's options and run it; see :meth:`click.Group.invoke`."""
        with _one_sentence():
            return super().invoke(ctx)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; see :meth:`click.Group.main`."""
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        try:
            with _orderly_end():
                return super().main(*args, **kwargs)
        except OSError as error:
            # Errors of files have their names; a broken pipe is click's.
            if error.filename is not None or error.errno not in _UNWRITTEN:
                raise
            click.echo(f"Error: the output cannot be written: {error.strerror}", err=True)
            _give_up_output()
            sys.exit(Refusal.exit_code)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn click's own errors of usage, four lines each, into a sentence that names the help."""
    try:
        yield
    except NoArgsIsHelpError:
        raise  # it shows the help
    except click.UsageError as error:
        text = error.format_message().rstrip(".")
        path = "" if error.ctx is None else f" (see {error.ctx.command_path} --help)"
        raise Refusal(f"{text}{path}.") from None


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command through its own cleaning up."""
    changed = []
    with suppress(ValueError):  # not the main thread: signals are its owner's
        for sign in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(sign) is signal.SIG_DFL:  # nohup ignores SIGHUP
                signal.signal(sign, _end_orderly)
                changed.append(sign)
    try:
        yield
    finally:
        for sign in changed:
            signal.signal(sign, signal.SIG_DFL)


def _end_orderly(sign: int, _: object) -> NoReturn:
    # A second one must not cut short what the first lets run.
    signal.signal(sign, signal.SIG_IGN)
    raise SystemExit(128 + sign)


def _give_up_output() -> None:
    """Let the rest of the output go nowhere, so that the end of Python does not try again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class NameChoice(click.Choice[str]):
    """A choice of names in any spelling: case, dashes, underscores and short names of types."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it is documented."""
        found = same_name(str(value), self.choices)
        if found is None:
            known = ", ".join(map(repr, self.choices))
            near = hint(str(value), self.choices)
            self.fail(f"{value!r:.80} is not one of {known}{near}.", param, ctx)
        return found


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


def check_output(path: Path, *inputs: Path) -> None:
    """Prove before the work that a file can be put there.

    Args:
        inputs: files that the work reads, which must not be replaced by what comes of it.

    Raises:
        Refusal: if its folder is missing or cannot be written, something else than a file is there,
            or it is one of the inputs.
    """
    check_parent(path)
    try:
        check_replaceable(path)
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {error.strerror}: give another path") from None
    for given in inputs:
        with suppress(OSError, ValueError):  # one that cannot be read is refused by its reader
            if path.samefile(given):
                raise Refusal(f"{path} is the input, which is kept: give another path")


def check_parent(path: Path) -> None:
    """Prove that something can be put beside it.

    Raises:
        Refusal: if its folder is missing or cannot be written.
    """
    folder = path.parent  # as it is: a folder of work that was removed has no absolute path
    if not os.path.isdir(folder):  # unlike Path.is_dir() it takes any path
        raise Refusal(f"the folder of {path} does not exist: make it, or give another path")
    try:
        # Access bits say nothing to root, and nothing of /proc or a full disk.
        with NamedTemporaryFile(dir=folder, prefix=".nfp-") as file:
            file.write(bytes(LEAST_ROOM))
            file.flush()
    except OSError as error:
        raise Refusal(
            f"the folder of {path} cannot be written ({error.strerror}): give another path"
        ) from None


def temporary_folder(prefix: str) -> Path:
    """A new folder in the temporary one.

    Raises:
        Refusal: if there is no temporary folder that can be written.
    """
    try:
        return Path(mkdtemp(prefix=prefix))
    except OSError as error:
        raise Refusal(
            f"no temporary folder can be written ({error.strerror}): "
            f"set TMPDIR to a folder that has room"
        ) from None


def write_or_keep(path: Path, write: Callable[[Path], None]) -> None:
    """Write what took long to find; where that fails now, leave it in the temporary folder.

    Raises:
        Refusal: if it is not at ``path`` in the end, saying where it is.
    """
    try:
        write(path)
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror}"
        try:
            kept = Path(mkdtemp(prefix="vllm-nfp-kept-")) / path.name
            write(kept)
        except OSError:
            raise Refusal(f"{problem}; no temporary folder takes the result either") from None
        raise Refusal(f"{problem}; the result is kept in {kept}") from None


def read_profile(path: Path) -> Profile:
    """A profile, or a refusal."""
    try:
        return load_profile(path)
    except ProfileError as error:
        raise Refusal(str(error)) from None
