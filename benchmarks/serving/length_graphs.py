"""Whether servers of a benchmark find the CUDA graphs of each draft length of a table.

On servers with draft control vllm-nfp sees to it (:mod:`vllm_nfp.adapter.length_graphs`; why it
must is told in :mod:`vllm_nfp.draft.length_graphs`). A comparison needs it on all of its servers or
on none: extensions of vLLM's worker, which every server has, read :data:`AS_IS_VARIABLE`.
"""

from __future__ import annotations

import os

from vllm_nfp.adapter import length_graphs
from vllm_nfp.adapter.patch import PatchSet

AS_IS_VARIABLE = "NFP_BENCH_AS_IS"
"""What extensions read: 1 leaves vLLM's choice of graphs as it is, on servers with a probe too."""


def settle() -> None:
    """Do in this worker what the variable says, before it makes its model runner."""
    if os.environ.get(AS_IS_VARIABLE) == "1":
        length_graphs.install = lambda *_: None
    else:
        length_graphs.put_in_place(PatchSet())
