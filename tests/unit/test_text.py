from __future__ import annotations

import pytest

from vllm_nfp.text import MOST_LABEL, MOST_SHOWN, duration, label, printable


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (0.01234, "12.3 ms"), (4.56e-5, "45.6 µs"), (7.8e-8, "78 ns"), (0.0, "0 ns")],
)
def test_a_time_has_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_foreign_text_is_shown_without_control_characters_and_not_without_end() -> None:
    assert printable("a\x1b[2Jb\nc") == "a?[2Jb?c"
    assert printable("n" * (MOST_SHOWN + 1)) == "n" * MOST_SHOWN + "..."


def test_a_label_keeps_what_the_exposition_can_hold() -> None:
    assert label('a"\\\n') == 'a"\\\n'
    assert label("\udcffx") == "?x"
    assert len(label("n" * 10_000)) == MOST_LABEL
