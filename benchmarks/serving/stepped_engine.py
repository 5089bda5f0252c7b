"""A vLLM engine in this process that is stepped by hand, with a batch that is held."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.serving import talk
from vllm_nfp.adapter.engines import worker_of


class Count:
    """Steps, tokens and times, by draft length."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()
        self._seconds: dict[int, list[float]] = {}
        self._tokens = 0

    @property
    def steps(self) -> int:
        """Steps so far."""
        return sum(map(len, self._seconds.values()))

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begun

    def add(self, tokens: int, length: int) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self._seconds.setdefault(length, []).append(now - self._last)
        self._last = now
        self._tokens += tokens

    def skip(self) -> None:
        """A step that does not count has ended."""
        self._last = time.perf_counter()

    def row(self) -> dict[str, Any]:
        """What is written.

        The median of a length's steps leaves out what stops the host for a moment; ``elapsed``
        holds it.
        """
        return {
            "tokens": self._tokens,
            "steps": self.steps,
            "elapsed": self._last - self._begun,
            "lengths": {k: len(times) for k, times in self._seconds.items()},
            "medians": {k: statistics.median(times) for k, times in self._seconds.items()},
        }


class SteppedEngine:
    """Steps an engine's loop and keeps a number of sequences of one context running.

    Args:
        llm: of :func:`vllm_nfp.adapter.engines.start_engine`.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._core = llm.llm_engine.engine_core.engine_core
        self.scheduler = self._core.scheduler
        self.runner = worker_of(llm).model_runner
        self._running: dict[int, tuple[str, ...]] = {}
        self._serial = 0

    def hold(self, batch_size: int, context: int) -> None:
        """End all sequences and start these; their prompts come from the prefix cache."""
        self._abort([name for names in self._running.values() for name in names])
        self._running.clear()
        self.resize(batch_size, context)

    def resize(self, batch_size: int, context: int) -> None:
        """Add or end sequences of this context until there are so many; reads new prompts."""
        names = list(self._running.get(context, ()))
        self._abort(names[batch_size:])
        names = names[:batch_size]
        added = batch_size > len(names)
        while len(names) < batch_size:
            names.append(self._add(len(names), context))
        self._running[context] = tuple(names)
        while added and self._prefilling():
            self.step()

    def _add(self, place: int, context: int) -> str:
        from vllm import SamplingParams

        self._serial += 1
        name = str(self._serial)
        prompt = talk.prompt(place, context - 1)
        params = SamplingParams(max_tokens=1 << 14, temperature=0.0, ignore_eos=True)
        self.llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, params)
        return name

    def _abort(self, names: Sequence[str]) -> None:
        if names:
            ids = set(names)
            running = [r for r in self.scheduler.requests if r.split("-")[0] in ids]
            self._core.abort_requests(running)
            self.llm.llm_engine.output_processor.abort_requests(names, internal=False)

    def _prefilling(self) -> bool:
        return bool(self.scheduler.waiting) or any(
            request.num_computed_tokens < request.num_prompt_tokens
            for request in self.scheduler.running
        )

    def step(self) -> int | None:
        """One call of the engine's loop; the tokens of a finished step, None if none finished."""
        if not self.scheduler.has_unfinished_requests():
            raise RuntimeError("all sequences have ended: they are too long for this model")
        outputs, executed = self._core.step_fn()
        self._core.post_step(executed)
        if not outputs:
            return None
        return sum(len(o.new_token_ids) for of in outputs.values() for o in of.outputs)
