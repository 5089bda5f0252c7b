"""Who decides to probe now: this rank alone, or several together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from vllm_nfp.adapter import ranks
from vllm_nfp.adapter.ranks import Ranks
from vllm_nfp.adapter.steps import blocks_taken, text_of
from vllm_nfp.probe.engine import ProbeEngine
from vllm_nfp.schedule.consent import Consent, OwnConsent
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.session.started import PublishingError, Started, follows

logger = logging.getLogger("vllm.nfp")

MOST_PROMPTS, MOST_PROMPT_TOKENS = 2, 512
"""Prompts of a step that are kept for probes, and tokens of each: one takes some 15 us of the step,
which may begin dozens."""


class Alone:
    """One rank decides for itself.

    Args:
        leads: whether it publishes; with several ranks that only time their steps, one does.
    """

    def __init__(self, leads: bool = True) -> None:
        self.leads = leads
        self.ranks: Ranks = ranks.Alone()

    def consent(self, engine: ProbeEngine) -> Consent:
        """Nobody else's."""
        return OwnConsent()

    def scan(
        self,
        engine: ProbeEngine,
        scan: Callable[[], None] = follows,
        prober: Prober | None = None,
    ) -> None:
        """Scan at once."""
        scan()

    def leave(self) -> None:
        """Nobody waits."""

    def before_step(self, started: Started, scheduler_output: Any) -> None:
        """Look at the step if it is its turn; the prober then decides by the budget."""
        lead = started.lead
        assert lead is not None, "a rank that is alone leads"
        stands_for = started.looks.at(scheduler_output)
        if stands_for:
            keep_prompts(started.engine, scheduler_output)
            lead.look(started.looks.step(scheduler_output), stands_for, started.graph_bytes)
        else:
            lead.watcher.serving()
        note_blocks(started.engine, scheduler_output)

    def before_dummy(self, started: Started) -> None:
        """Nothing: it is timed as little as it is probed."""

    def idle(self, started: Started) -> float:
        """The prober decides by the share of idle time."""
        assert started.lead is not None, "a rank that is alone leads"
        return started.lead.idle(started.graph_bytes)

    def timed(self, started: Started) -> bool:
        """Whether the step is looked at."""
        return started.looks.stands_for > 0

    def fault(self, stage: str, error: Exception) -> str | None:
        """The fault itself."""
        return reason_of(stage, error)


def reason_of(stage: str, error: Exception) -> str:
    """Log a fault; why the probe ends with it."""
    if isinstance(error, PublishingError):
        return str(error)
    logger.error("vllm-nfp: fault in stage %s", stage, exc_info=error)
    return f"fault in stage {stage}: {error!r}"


def keep_prompts(engine: ProbeEngine | None, scheduler_output: Any) -> None:
    """Keep tokens of the first prompts that a step begins, for probes to run on."""
    new = scheduler_output.scheduled_new_reqs
    if not new or engine is None:
        return
    with torch.inference_mode():  # as the engine's tensors were made
        texts = filter(None, (text_of(request, MOST_PROMPT_TOKENS) for request in new))
        for ids in islice(texts, MOST_PROMPTS):
            engine.tokens.add(ids)


def note_blocks(engine: ProbeEngine | None, scheduler_output: Any) -> None:
    """Note the KV blocks that a step writes for the requests that it begins.

    At every step, as all ranks of an engine see each step alike, so that their probes read the same
    blocks. And once a probe ahead of the step has been launched: it runs before they are written.
    """
    if engine is None or engine.written is None:
        return
    for taken in blocks_taken(scheduler_output, engine.written.block_tokens):
        engine.written.add(taken)
