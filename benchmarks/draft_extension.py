"""vLLM's ``--worker-extension-cls`` for benchmarks.draft_servers: acceptance and lengths, set live.

With one GPU the worker and the scheduler are in one process, and the worker comes first: importing
this module there keeps hold of the scheduler that is made next, and gives an EAGLE-3 head with
dummy weights the LM head of its own that a trained one has. Methods are called by ``POST
/collective_rpc``, which vLLM offers with ``VLLM_SERVER_DEV_MODE=1``: the engine's own thread calls
them between two steps. Nothing of the probe changes.

Each length finds its CUDA graphs (:mod:`benchmarks.length_graphs`), unless ``NFP_BENCH_AS_IS=1``.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

from benchmarks import length_graphs, stall_watch

_SCHEDULERS: list[Any] = []


def _keep_schedulers() -> None:
    original = Scheduler.__init__

    @functools.wraps(original)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _SCHEDULERS.append(self)

    Scheduler.__init__ = made


_keep_schedulers()
stall_watch.watch_if_asked()
length_graphs.settle()
Eagle3LlamaForCausalLM.has_own_lm_head = True


class DraftServer:
    """Methods that vLLM adds to its worker; the arguments are JSON."""

    model_runner: Any

    def bench_acceptance(self, value: str) -> str:
        """Accept every drafted token with this probability, given those before it."""
        sampler = getattr(self.model_runner, "rejection_sampler", None)
        rates = getattr(sampler, "synthetic_conditional_rates", None)
        if rates is not None:  # vLLM's sampler for CPUs has none
            rates.fill_(json.loads(value))
        return json.dumps(rates is not None)

    def bench_lengths(self, value: str) -> str:
        """Draft as this table by batch size says; the server must have one of its lengths."""
        table = json.loads(value)
        for scheduler in _SCHEDULERS:
            scheduler.dynamic_sd_lookup = build_dynamic_sd_schedule_lookup(
                table, scheduler.scheduler_config.max_num_seqs, scheduler.num_spec_tokens
            )
        return json.dumps(len(_SCHEDULERS))
