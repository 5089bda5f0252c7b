"""Replacing attributes: once, reversibly, on classes and on objects, and never in silence."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.patch import MissingTargetError, PatchSet
from vllm_nfp.adapter.targets import Feature, Target


class Toy:
    def plain(self, x: int) -> int:
        return x

    @classmethod
    def of_class(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x

    @staticmethod
    def static(x: int) -> int:
        return x


class Child(Toy):
    pass


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("toys")
    module.Toy = Toy  # type: ignore[attr-defined]
    module.double = lambda x: 2 * x  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toys", module)
    before = dict(vars(Toy))
    yield
    assert dict(vars(Toy)) == before


def target(path: str, feature: Feature = Feature.STEPS, **changes: Any) -> Target:
    return Target(f"toys:{path}", feature, "is a test", **changes)


def add_one(original: Any) -> Any:
    return lambda self, x: original(self, x) + 1


def test_wrapping_twice_is_once_and_restoring_brings_the_original_back() -> None:
    patches = PatchSet()
    assert patches.wrap(target("Toy.plain"), add_one)
    assert patches.wrap(target("Toy.plain"), add_one)
    assert PatchSet().wrap(target("Toy.plain"), add_one)
    assert Toy().plain(1) == 2
    patches.restore()
    patches.restore()
    assert Toy().plain(1) == 1


def test_a_function_of_a_module_is_replaced() -> None:
    patches = PatchSet()
    patches.wrap(target("double"), lambda original: lambda x: original(x) + 1)
    assert sys.modules["toys"].double(3) == 7
    patches.restore()
    assert sys.modules["toys"].double(3) == 6


def test_a_class_method_keeps_the_class_that_it_was_called_on() -> None:
    patches = PatchSet()

    def doubled(original: Any) -> Any:
        return classmethod(lambda cls, x: original.__func__(cls, 2 * x))

    patches.wrap(target("Toy.of_class"), doubled)
    assert Child.of_class(3) == ("Child", 6)
    patches.restore()
    assert Child.of_class(3) == ("Child", 3)


def times_ten(original: Any) -> Any:
    return lambda x: original(x) * 10


def test_an_object_is_patched_without_its_class() -> None:
    toy, other = Toy(), Toy()
    patches = PatchSet()
    patches.wrap(target("Toy.plain", on_object=True), times_ten, on=toy)
    assert (toy.plain(2), other.plain(2)) == (20, 2)
    patches.restore()
    assert vars(toy) == {}
    assert toy.plain(2) == 2


def test_an_object_is_not_kept_alive_to_be_restored() -> None:
    patches = PatchSet()
    toy = Toy()
    patches.wrap(target("Toy.plain", on_object=True), times_ten, on=toy)
    gone = weakref.ref(toy)
    del toy
    gc.collect()
    assert gone() is None
    patches.restore()


def test_a_part_is_restored_alone_and_with_the_whole() -> None:
    whole, first, second = PatchSet(), Toy(), Toy()
    parts = [whole.part(), whole.part()]
    undone: list[str] = []
    for part, toy in zip(parts, (first, second), strict=True):
        part.wrap(target("Toy.plain", on_object=True), times_ten, on=toy)
        part.on_restore(lambda: undone.append("a part"))
    parts[0].restore()
    assert (first.plain(1), second.plain(1), undone) == (1, 10, ["a part"])
    whole.restore()
    assert (first.plain(1), second.plain(1), undone) == (1, 1, ["a part"] * 2)


@pytest.mark.parametrize("path", ["Toy.gone", "Gone.plain", "gone"])
def test_a_missing_target_that_is_required_is_an_error_by_name(path: str) -> None:
    name = path.rpartition(".")[2]
    with pytest.raises(MissingTargetError, match=rf"of this vLLM .* has no {name} to hook"):
        PatchSet().wrap(target(path), add_one)


def test_another_missing_target_is_logged_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        assert not PatchSet().wrap(target("Toy.gone", Feature.IDLE), add_one)
        absent = Target("no_such_module:function", Feature.IDLE, "is a test")
        assert not PatchSet().wrap(absent, add_one)
    assert "toys:Toy of this vLLM" in caplog.text and "has no gone to hook" in caplog.text
    assert "no_such_module" in caplog.text and "has no function to hook" in caplog.text


@pytest.mark.parametrize(
    ("version", "replaced"), [("0.31.0", False), ("0.32.1+cpu", True), ("dev", True)]
)
def test_a_target_is_replaced_in_its_releases_alone(
    version: str,
    replaced: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: version)
    patches = PatchSet()
    assert patches.wrap(target("Toy.plain", since=(0, 32)), add_one) is replaced
    patches.restore()
    assert not caplog.text


def test_a_target_on_objects_is_not_replaced_on_its_class() -> None:
    wrap: Callable[..., bool] = PatchSet().wrap
    with pytest.raises(TypeError, match=r"Toy\.plain is replaced on an object"):
        wrap(target("Toy.plain", on_object=True), add_one)
    with pytest.raises(TypeError, match=r"Toy\.plain is replaced on no object"):
        wrap(target("Toy.plain"), add_one, on=Toy())
