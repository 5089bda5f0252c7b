from __future__ import annotations

import logging
from typing import Any

import pytest

from vllm_nfp.adapter.patch import PatchSet


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


def add_one(original: Any) -> Any:
    return lambda self, x: original(self, x) + 1


def test_wrapping_twice_is_once_and_restoring_brings_the_original_back() -> None:
    before = dict(vars(Toy))
    patches = PatchSet()
    assert patches.wrap(Toy, "plain", add_one)
    assert patches.wrap(Toy, "plain", add_one)
    assert PatchSet().wrap(Toy, "plain", add_one)
    assert Toy().plain(1) == 2
    patches.restore()
    patches.restore()
    assert dict(vars(Toy)) == before


def test_a_class_method_keeps_the_class_that_it_was_called_on() -> None:
    patches = PatchSet()

    def doubled(original: Any) -> Any:
        return classmethod(lambda cls, x: original.__func__(cls, 2 * x))

    patches.wrap(Toy, "of_class", doubled)
    assert Child.of_class(3) == ("Child", 6)
    patches.restore()
    assert Child.of_class(3) == ("Child", 3)


def test_an_object_is_patched_without_its_class() -> None:
    toy, other = Toy(), Toy()
    patches = PatchSet()
    patches.wrap(toy, "plain", lambda original: lambda x: original(x) * 10)
    assert (toy.plain(2), other.plain(2)) == (20, 2)
    patches.restore()
    assert vars(toy) == {}
    assert toy.plain(2) == 2


def test_a_missing_target_is_logged_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        assert not PatchSet().wrap(Toy, "gone", add_one)
    assert "has no gone to hook" in caplog.text
