"""The sets of a file of public measurements: which are seen, and which points count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.public_routing import dealt_rows
from benchmarks.prediction.public_seconds import TYPES, gated
from benchmarks.prediction.public_tiles import release_of
from vllm_nfp.principle.hardware import Hardware

Floats = NDArray[np.float64]
_EXPERTS = ("Qwen3-30B-A3B TP1", "Mixtral-8x7B TP2", "Mixtral-8x7B TP8", "DeepSeek-V3 TP8",
            "gpt-oss-120b TP2")  # fmt: skip
SEEN: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "dense_products": (
        ("/A100-SXM4-80GB/", "Llama-2-70b"),
        ("/A100-SXM4-80GB/", "CodeLlama-34b"),
        *(("/L40S/", f"/{model}") for model in ("Llama-3.2-3B TP1", "Llama-3.1-70B TP8")),
    ),
    "all_reduce": (("/R2/",), ("/R8/",)),
    "attention_vs_batch": (("/Llama-3.1-8B/",),),
    "mla_module_vs_batch": (("heads 16/", "/L1024"), ("heads 128/", "/L4096")),
    "routed_experts": tuple((f"/{model}/",) for model in _EXPERTS),
}
"""Parts of the names of the sets that built-in constants were fitted to, by kind, in words of which
all must occur. Written down before the fits."""
HALVES = ("ampere", "hopper")
"""Generations whose L2 is two halves, each of which keeps what its SMs read."""


OWN = {
    "dense_products": ("H100-SXM",),
    "attention_vs_batch": ("H100-SXM",),
    "routed_experts": ("H100-SXM", "H200"),
}
"""Devices whose constants for 16-bit weights rest on own runs, which saw no public set."""


def is_seen(one: Mapping[str, Any]) -> bool:
    """Whether the constants of the split were fitted to the set."""
    dtype = one["essentials"].get("dtype", "bfloat16")
    if dtype == "bfloat16" and one["hardware"] in OWN.get(one["kind"], ()):
        return False
    return any(all(part in one["id"] for part in pair) for pair in SEEN.get(one["kind"], ()))


def model_of(one: Mapping[str, Any]) -> str:
    """Model and tensor parallel size of a set; heads of latent attention, ranks of all-reduces."""
    return str(one["id"]).split("/")[2]


def family_of(one: Mapping[str, Any]) -> str:
    """The family of the model. FP4 experts (all gpt-oss), latent attention (all DeepSeek-V3) and
    all-reduces have one only: as :func:`model_of`."""
    name = model_of(one)
    if one["essentials"].get("dtype") == "w4a16_mxfp4":
        return name
    if one["kind"] in ("mla_module_vs_batch", "all_reduce"):
        return name
    found = re.match(r"(?:Meta-|Code)?([A-Za-z]+)", name)
    return found[1] if found else name


def usable_points(one: Mapping[str, Any], hardware: Hardware) -> tuple[Floats, Floats]:
    """x and times without those that were timed out of L2.

    Beside the points that the file marks, these are steps of routed experts whose weights fit it.
    """
    points = np.array(one["points"], dtype=np.float64)[np.array(one["usable"], dtype=bool)]
    points, times = points.reshape(-1, 2).T
    sizes = one["essentials"]
    if one["kind"] == "routed_experts" and sizes["dtype"] in TYPES:
        drawn = dealt_rows(one, release_of(one))
        gemms = gated(sizes, TYPES[sizes["dtype"]][1], False)
        read = drawn.awake(points) * sum(gemm.weight_traffic for gemm in gemms)
        kept = hardware.l2_bytes / (2 if hardware.generation in HALVES else 1)
        points, times = points[read > kept], times[read > kept]
    return points, times
