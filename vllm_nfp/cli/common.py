"""What the commands share: errors, options, and the reading of arguments."""

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

from vllm_nfp.files import MODEL_CONFIGS, check_replaceable
from vllm_nfp.results.profile import Profile, ProfileError, load_profile
from vllm_nfp.text import hint, printable, same_name
from vllm_nfp.web import hide_password

MOST_REFUSAL = 2000
"""Characters of an error: the longest sentence of ours, with the names that it quotes."""
LEAST_ROOM = 1 << 16
"""Bytes that a directory must accept before the work begins; a profile has about 100 kB."""

_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

F = TypeVar("F", bound=Callable[..., Any])
N = TypeVar("N", int, float)


class Refusal(click.ClickException):
    """Bad input: one sentence and exit code 2.

    The sentence may quote paths, URLs and names. Control characters and passwords in them are not
    shown.
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
    """Let SIGTERM and SIGHUP end the command with its own cleanup."""
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
    # A second signal must not interrupt the cleanup.
    signal.signal(sign, signal.SIG_IGN)
    raise SystemExit(128 + sign)


def _give_up_output() -> None:
    """Discard the rest of the output, so that Python does not try to write it at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class NameChoice(click.Choice[str]):
    """A choice of names; case, dashes, underscores and short names of types do not matter."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as documented."""
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
        example: shown in an error.

    Raises:
        Refusal: naming the flag and the text that is not a number.
    """
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(item(part.strip()))
        except ValueError:
            kind = "whole number" if item is int else "number"
            raise Refusal(
                f"{flag} holds {part.strip()!r:.60}, which is not a {kind}: "
                f"give numbers as in {example}"
            ) from None
    return tuple(numbers)


def require_model_in(directory: Path, advice: str) -> None:
    """Refuse a directory that holds no model as vLLM reads one.

    Args:
        advice: what to do.

    Raises:
        Refusal: if it has a config in no format that vLLM reads.
    """
    if not any(os.path.isfile(directory / name) for name in MODEL_CONFIGS):
        raise Refusal(f"the directory {directory} holds no config.json: {advice}")


def check_output(path: Path, *inputs: Path) -> None:
    """Check before the work that a file can be written.

    Args:
        inputs: files that the work reads, which must not be overwritten.

    Raises:
        Refusal: if its directory is missing or cannot be written, something other than a file is
            there, or it is one of the inputs.
    """
    check_parent(path)
    try:
        check_replaceable(path)
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {error.strerror}: give another path") from None
    for given in inputs:
        with suppress(OSError, ValueError):  # its reader refuses one that cannot be read
            if path.samefile(given):
                raise Refusal(f"{path} is the input and is not overwritten: give another path")


def check_parent(path: Path) -> None:
    """Check that the directory of a path exists and can be written.

    Raises:
        Refusal: if it does not, or cannot.
    """
    folder = path.parent  # not made absolute: a removed working directory has no path
    if not os.path.isdir(folder):  # unlike Path.is_dir() it takes any path
        raise Refusal(f"the directory of {path} does not exist: create it, or give another path")
    try:
        # Access bits do not bind root, nor tell about /proc or a full disk.
        with NamedTemporaryFile(dir=folder, prefix=".nfp-") as file:
            file.write(bytes(LEAST_ROOM))
            file.flush()
    except OSError as error:
        raise Refusal(
            f"the directory of {path} cannot be written ({error.strerror}): give another path"
        ) from None


def temporary_folder(prefix: str) -> Path:
    """A new directory for temporary files.

    Raises:
        Refusal: if no temporary directory can be written.
    """
    try:
        return Path(mkdtemp(prefix=prefix))
    except OSError as error:
        raise Refusal(
            f"no temporary directory can be written ({error.strerror}): "
            f"set TMPDIR to a directory with free space"
        ) from None


def write_or_keep(path: Path, write: Callable[[Path], None]) -> None:
    """Write a result; where that fails, keep it in the temporary directory.

    Raises:
        Refusal: if it could not be written to ``path``, naming where it is kept.
    """
    try:
        write(path)
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror}"
        try:
            kept = Path(mkdtemp(prefix="vllm-nfp-kept-")) / path.name
            write(kept)
        except OSError:
            raise Refusal(f"{problem}, nor to a temporary directory") from None
        raise Refusal(f"{problem}; the result is kept in {kept}") from None


def read_profile(path: Path) -> Profile:
    """The profile in a file.

    Raises:
        Refusal: if it is no profile.
    """
    try:
        return load_profile(path)
    except ProfileError as error:
        raise Refusal(str(error)) from None
