"""Reads which experts some real steps choose, and hands the choices to the publisher.

Only steps that vLLM runs without a CUDA graph can be read: long prompts, and every step of a server
without graphs. A step in a graph calls no router, and so nothing is enqueued in it. What a read
step is given is one small copy for each of a few layers, and one to the host.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from vllm_nfp.adapter.routers import NotCountedError, Routers, routers_of
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.results.expert_counts import LEAST_STEPS, Choices
from vllm_nfp.timing import Clock
from vllm_nfp.timing.clock import Mark

logger = logging.getLogger("vllm.nfp")

MOST_LAYERS = 8
"""Layers that are asked, spread over the model: bounds the copies of a step."""
MOST_ROWS = 1024
"""Tokens of a step that are read, spread over the step: bounds the memory. Eight steps of so many
say what the widest reported step wakes."""
FIRST_SECONDS, LATER_SECONDS = 0.25, 5.0
"""Least time between two steps that are read, before there are enough of them and after it."""


class ExpertChoices:
    """Reads one step at a time; used by the serving thread, and waits for nothing.

    Args:
        routers: those that are asked.
        device: that steps run on.
        clock: tells when the device has passed a copy.
        sink: takes what a step chose; must not wait.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        routers: Routers,
        device: torch.device,
        clock: Clock,
        sink: Callable[[Choices], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._routers = routers
        self._clock = clock
        self._sink = sink
        self._now = now
        shape = (len(routers.asked), MOST_ROWS, routers.experts_per_token)
        self._read = torch.zeros(shape, dtype=torch.int32, device=device)
        self._host = torch.zeros(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._tokens = 0
        """Of the step that is listened to; 0: to none."""
        self._rows: list[int] = []
        """Tokens read, of each layer that has chosen."""
        self._under_way: tuple[Mark, int] | None = None
        """A copy to the host, and its tokens."""
        self._due = 0.0
        self._steps = 0
        self._fault: Exception | None = None

    def begin(self, tokens: int) -> None:
        """A real step of so many tokens is about to be launched.

        Raises:
            Exception: what went wrong inside an earlier step.
        """
        self._settle()
        if self._under_way is None and self._now() >= self._due:
            self._tokens, self._rows = tokens, []
            self._routers.listen(self._chosen)

    def end(self) -> None:
        """The step has been launched.

        Raises:
            Exception: what went wrong inside it.
        """
        if not self._tokens:
            return
        self._routers.release()
        self._tokens = 0
        if self._fault is not None:
            raise self._fault
        if len(self._rows) == len(self._routers.asked) and len(set(self._rows)) == 1:
            with torch.inference_mode():
                self._host.copy_(self._read, non_blocking=True)
            self._under_way = self._clock.mark(), self._rows[0]
            self._steps += 1
            wait = FIRST_SECONDS if self._steps <= LEAST_STEPS else LATER_SECONDS
            self._due = self._now() + wait

    def close(self) -> None:
        """Listen no more."""
        self._routers.release()
        self._tokens = 0

    def _chosen(self, place: int, ids: torch.Tensor) -> None:
        """A layer chooses; runs inside the server's step, which a fault must not reach."""
        try:
            # A step that is cut in two calls a router twice; padding follows the tokens.
            if place != len(self._rows):
                return
            of_tokens = ids[: self._tokens]
            stride = -(-len(of_tokens) // MOST_ROWS)
            spread = of_tokens[::stride]
            self._read[place, : len(spread)].copy_(spread)
            self._rows.append(len(spread))
        except Exception as error:
            self._fault = error

    def _settle(self) -> None:
        """Hand over what has reached the host."""
        if self._under_way is None or not self._clock.ready(self._under_way[0]):
            return
        mark, rows = self._under_way
        self._clock.release(mark)
        self._under_way = None
        ids = self._host[:, :rows].numpy().copy()
        self._sink(Choices(ids, self._routers.num_experts))


def expert_choices(
    view: RunnerView, clock: Clock, sink: Callable[[Choices], None]
) -> ExpertChoices | None:
    """What reads the choices of a server's experts; None where there are none to read.

    Args:
        clock: that of the serving stream.
        sink: takes what a step chose.
    """
    try:
        routers = routers_of(view, MOST_LAYERS)
    except (NotCountedError, ImportError, AttributeError) as error:
        logger.info("vllm-nfp: the experts that steps choose are not counted: %s", error)
        return None
    return None if routers is None else ExpertChoices(routers, view.device, clock, sink)
