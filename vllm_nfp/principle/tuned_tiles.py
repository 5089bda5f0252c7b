"""Tiles that vLLM ships for its Triton kernel of routed experts, by experts, width and device.

``tuned_tiles.json`` holds the sizes of the files in vLLM 0.32's
model_executor/layers/fused_moe/configs (Apache-2.0); ``benchmarks/prediction/tuned_tiles.py``
writes it. The order of entries is the file's: of two as near to a step's tokens, vLLM takes the
first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

from vllm_nfp.principle.hardware import Hardware

Tiles = Mapping[int, Mapping[str, int]]
SIZES = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")
_TYPES = {"none": "", "fp8": "fp8", "fp8_block": "fp8_block"}


def shipped_tiles(hardware: Hardware, quantization: str, num_experts: int, width: int) -> Tiles:
    """Content of the file that vLLM finds; empty where it has none.

    Args:
        quantization: how weights are stored.
        num_experts: experts of the rank.
        width: inputs of an expert's down product on the rank.
    """
    if quantization not in _TYPES:
        return {}
    for name in hardware.device_names:
        key = f"{num_experts},{width},{file_device(name)},{_TYPES[quantization]}"
        if key in _table():
            return read(_table()[key])
    return {}


def file_device(device_name: str) -> str:
    """A device as vLLM writes it in a file's name; the H200 family has one."""
    words = device_name.split()
    return "NVIDIA_H200" if "H200" in words else "_".join(words)


def written(tiles: Tiles) -> str:
    """``tokens:m,n,k,group`` for each entry; only what the reader needs of a file."""
    return " ".join(
        f"{tokens}:{','.join(str(row[name]) for name in SIZES)}" for tokens, row in tiles.items()
    )


@lru_cache(maxsize=256)
def read(text: str) -> Tiles:
    """What :func:`written` wrote."""
    found: dict[int, Mapping[str, int]] = {}
    for entry in text.split():
        tokens, _, sizes = entry.partition(":")
        found[int(tokens)] = dict(zip(SIZES, map(int, sizes.split(",")), strict=True))
    return found


@lru_cache(maxsize=1)
def _table() -> Mapping[str, str]:
    text = files(__package__).joinpath("tuned_tiles.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found
