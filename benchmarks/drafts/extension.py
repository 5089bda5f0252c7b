"""vLLM's ``--worker-extension-cls`` for ``drafts.servers``: acceptance and lengths, set live.

With one GPU the worker and the scheduler are in one process, and the worker comes first: importing
this module there keeps hold of the scheduler that is made next, and has an EAGLE-3 head with dummy
weights draft as a trained one does. Methods are called by ``POST
/collective_rpc``, which vLLM offers with ``VLLM_SERVER_DEV_MODE=1``: the engine's own thread calls
them between two steps. Nothing of the probe changes.

Each length finds its CUDA graphs (:mod:`benchmarks.serving.length_graphs`), unless
``NFP_BENCH_AS_IS=1``.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

from benchmarks.drafts.models import drafter, prepare_head
from benchmarks.serving import length_graphs, stall_watch, talk

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
prepare_head("eagle3")


class DraftServer:
    """Methods that vLLM adds to its worker; the arguments are JSON."""

    model_runner: Any

    def bench_talk(self) -> str:
        """Have the model and its head say what benchmarks.serving.talk lets them say."""
        talk.teach(self.model_runner.get_model())
        head = getattr(drafter(self.model_runner), "model", None)
        if head is not None:  # n-grams have none, and no speculation has no drafter
            talk.teach_head(head)
        return json.dumps(head is not None)

    def bench_acceptance(self, value: str) -> str:
        """Accept each drafted token with such a probability, given those before it."""
        sampler = getattr(self.model_runner, "rejection_sampler", None)
        rates = getattr(sampler, "synthetic_conditional_rates", None)
        if rates is not None:  # vLLM's sampler for CPUs has none
            rates.copy_(torch.tensor(json.loads(value)[: len(rates)]))
        return json.dumps(rates is not None)

    def bench_lengths(self, value: str) -> str:
        """Draft as this table by batch size says; the server must have one of its lengths."""
        table = json.loads(value)
        for scheduler in _SCHEDULERS:
            scheduler.dynamic_sd_lookup = build_dynamic_sd_schedule_lookup(
                table, scheduler.scheduler_config.max_num_seqs, scheduler.num_spec_tokens
            )
        return json.dumps(len(_SCHEDULERS))
