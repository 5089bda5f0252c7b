"""Added to vLLM's workers by test_data_parallel.py: gives a CPU what data parallelism needs.

vLLM 0.32 moves the tokens of experts with ``all_gatherv`` and ``reduce_scatterv``, which its
communicator of a CPU lacks, and its experts on a CPU take all experts for their own. So a server
ends at its first batch, with or without the probe.
"""

from __future__ import annotations

from typing import Any

import torch
from rank_extension import ProbeExtension
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts


class WaveExtension(ProbeExtension):
    """The methods of its base; importing this module does the rest."""


def all_gatherv(
    communicator: CpuCommunicator,
    given: torch.Tensor | list[torch.Tensor],
    dim: int = 0,
    sizes: list[int] | None = None,
) -> torch.Tensor | list[torch.Tensor]:
    """The rows of all ranks, one rank after the other; ranks may have unequal numbers of them."""
    if isinstance(given, list):
        return [all_gatherv(communicator, each, dim, sizes) for each in given]
    rows = sizes or [len(given)] * communicator.world_size
    gathered = given.new_zeros((sum(rows), *given.shape[1:]))
    # As a sum with zeros: gloo's gathering writes tensors of inference mode outside of it.
    gathered.split(rows)[communicator.rank_in_group].copy_(given)
    torch.distributed.all_reduce(gathered, group=communicator.device_group)
    return gathered


def reduce_scatterv(
    communicator: CpuCommunicator,
    given: torch.Tensor,
    dim: int = -1,
    sizes: list[int] | None = None,
) -> torch.Tensor:
    """This rank's rows of the sum over all ranks."""
    total, size = given.clone(), communicator.world_size
    torch.distributed.all_reduce(total, group=communicator.device_group)
    rows = sizes or [len(given) // size] * size
    return total.split(rows)[communicator.rank_in_group].contiguous()


def reduce_scatterv_into_output(
    communicator: CpuCommunicator,
    given: torch.Tensor,
    output: torch.Tensor,
    dim: int = -1,
    sizes: list[int] | None = None,
) -> torch.Tensor:
    """The same, to where it is wanted."""
    return output.copy_(reduce_scatterv(communicator, given, dim, sizes))


def of_own_experts(apply: Any) -> Any:
    """Experts of other ranks add nothing here."""

    def applied(self: Any, **given: Any) -> None:
        expert_map, chosen = given["expert_map"], given["topk_ids"]
        if expert_map is not None:
            local = expert_map[chosen.clamp(min=0).long()]
            own = (local >= 0) & (chosen >= 0)
            given["topk_ids"] = torch.where(own, local, 0).to(chosen.dtype).contiguous()
            given["topk_weights"] = torch.where(own, given["topk_weights"], 0.0).contiguous()
        apply(self, **given)

    return applied


CpuCommunicator.all_gatherv = all_gatherv
CpuCommunicator.reduce_scatterv = reduce_scatterv
CpuCommunicator.reduce_scatterv_into_output = reduce_scatterv_into_output
CPUUnquantizedExperts.apply = of_own_experts(CPUUnquantizedExperts.apply)
