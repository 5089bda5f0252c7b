"""Replaces attributes of code that we do not own: each once, never silently, and to be undone."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.targets import Target

logger = logging.getLogger("vllm.nfp")

MARK = "__nfp_original__"
"""Attribute of a replacement that holds what it replaced."""


class MissingTargetError(RuntimeError):
    """This vLLM lacks an attribute that a feature cannot do without; the message names it."""


class PatchSet:
    """Attributes that are replaced, and how to put them back.

    >>> from vllm_nfp.adapter.targets import Feature, Target
    >>> class Toy:
    ...     def double(self, x):
    ...         return 2 * x
    >>> toy = Toy()
    >>> patches = PatchSet()
    >>> target = Target("toys:Toy.double", Feature.STEPS, "adds one", on_object=True)
    >>> patches.wrap(target, lambda original: lambda x: original(x) + 1, on=toy)
    True
    >>> toy.double(2)
    5
    >>> patches.restore()
    >>> toy.double(2)
    4
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def wrap(self, target: Target, make: Callable[[Any], Any], on: object | None = None) -> bool:
        """Replace a target by ``make(original)``.

        Args:
            on: the object that it is replaced on, for targets that are replaced on objects. It is
                not kept alive.

        Returns:
            False if it is not replaced: it is meant for other releases, or it is missing and not
            required, which a warning says. True without another replacement if it is already ours.

        Raises:
            MissingTargetError: if it is required and missing.
        """
        if (on is not None) is not target.on_object:
            raise TypeError(f"{target.name} is replaced on {'an' if target.on_object else 'no'} "
                            "object")  # fmt: skip
        if target.since is not None and not target.is_in(versions.installed_release()):
            return False
        try:
            owner = target.owner() if on is None else on
            original = getattr(owner, target.attribute)
        except (ImportError, AttributeError):
            original = None
        if original is None:
            self._tell_missing(target, on)
            return False
        if hasattr(original, MARK):
            return True
        replacement = make(original)
        setattr(_plain_function(replacement), MARK, original)
        self._replace(owner, target.attribute, replacement)
        return True

    @staticmethod
    def _tell_missing(target: Target, on: object | None) -> None:
        whole = target.name.removesuffix(target.attribute).rstrip(".:")
        owner = whole if on is None else type(on).__name__
        sentence = (
            f"{owner} of this vLLM ({versions.installed_version()}) has no {target.attribute} to "
            f"hook; needed for {target.feature}"
        )
        if target.required:
            raise MissingTargetError(sentence)
        logger.warning("vllm-nfp: %s", sentence)

    def _replace(self, owner: Any, name: str, replacement: Any) -> None:
        own = vars(owner)
        was_own, stored = name in own, own.get(name)
        find = _reference(owner)
        setattr(owner, name, replacement)

        def put_back() -> None:
            alive = find()
            if alive is None:
                return
            if was_own:
                setattr(alive, name, stored)
            else:
                delattr(alive, name)

        self._undo.append(put_back)

    def part(self) -> PatchSet:
        """A set that can be restored by itself, and is restored with this one."""
        part = PatchSet()
        self._undo.append(part.restore)
        return part

    def on_restore(self, undo: Callable[[], None]) -> None:
        """Call this as well when everything is put back."""
        self._undo.append(undo)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to put back."""
        return not self._undo

    def restore(self) -> None:
        """Put every replaced attribute back, newest first; safe to call twice."""
        while self._undo:
            self._undo.pop()()


def _reference(owner: Any) -> Callable[[], Any]:
    """Finds the object again without keeping it alive, if its type allows that."""
    try:
        return weakref.ref(owner)
    except TypeError:
        return lambda: owner


def _plain_function(replacement: Any) -> Any:
    """The function that can carry an attribute: a static or class method is only a shell."""
    return getattr(replacement, "__func__", replacement)
