"""What every unit test owes the next one in its process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


def replaced() -> set[str]:
    """Names of vLLM's attributes that are replaced in this process, objects' own left out."""
    if "vllm" not in sys.modules:
        return set()
    from vllm_nfp.adapter.patch import MARK
    from vllm_nfp.adapter.targets import TARGETS

    there = [target for target in TARGETS if target.is_imported and not target.on_object]
    return {
        target.name
        for target in there
        if hasattr(getattr(target.owner(), target.attribute, None), MARK)
    }


@pytest.fixture(autouse=True)
def nothing_stays_replaced() -> Iterator[None]:
    """A hook that a test leaves on vLLM fails this test, not one that comes later by chance."""
    before = replaced()
    yield
    assert replaced() <= before, "the test left hooks on vLLM"
