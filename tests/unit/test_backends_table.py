"""The table of attention backends in the docs is of the backends that vLLM has."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
OTHER_DEVICES = ("ROCM_", "XPU_")
NONE = {"TORCH_SDPA", "NO_ATTENTION", "CUSTOM"}
"""For encoders of images, for models without attention, and for backends of others."""
ONLY_033 = {"FLASH_ATTN_MLA_SPARSE_FA4", "STEP5_DSA"}


def test_every_backend_of_the_installed_vllm_is_in_the_table() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    table = tomllib.loads((DOCS / "backends.toml").read_text())
    listed = [name for each in table["backend"] for name in each["names"]]
    assert len(listed) == len(set(listed))
    names = {name for name in AttentionBackendEnum.__members__ if name not in NONE}
    served = {name for name in names if not name.startswith(OTHER_DEVICES)}
    assert not served - set(listed), "read its sources, and say what was run"
    assert set(listed) - served <= ONLY_033
