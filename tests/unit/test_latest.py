"""What was asked lately is kept, and the oldest is told of when it leaves."""

from __future__ import annotations

from vllm_nfp.surface.latest import Latest


def test_the_key_that_was_asked_longest_ago_leaves() -> None:
    left: list[tuple[str, int]] = []
    latest: Latest[str, int] = Latest(2, lambda key, value: left.append((key, value)))
    made: list[str] = []

    def ask(key: str) -> int:
        return latest.get(key, lambda: made.append(key) or len(made))

    assert [ask(key) for key in ("a", "b", "a", "c", "a", "b")] == [1, 2, 1, 3, 1, 4]
    assert made == ["a", "b", "c", "b"]
    assert left == [("b", 2), ("c", 3)]


def test_what_is_cleared_is_made_again_and_nothing_is_told() -> None:
    latest: Latest[int, None] = Latest(1, lambda key, value: (_ for _ in ()).throw(AssertionError))
    made: list[int] = []
    for _ in range(2):
        latest.get(1, lambda: made.append(1))
        latest.clear()
    assert made == [1, 1]
