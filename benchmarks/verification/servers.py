"""The servers of :mod:`benchmarks.verification.compare`: two at a time, started side by side.

A server's start takes longer than its loads, and the memory of one GPU holds two servers with
their KV caches. So all start at once. Those of later pairs wait, stopped (SIGSTOP), once their
engine begins: it has imported all it needs by then, and holds no memory of the GPU yet. While loads
run, all but one are stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from benchmarks.serving.server import Spec
from vllm_nfp.start.process import ProcessError
from vllm_nfp.start.server import Server

AT_ONCE = 2
"""On an H200 of 140 GiB: 24 layers of an 8B model take 60 GiB each with the KV cache of the loads,
those of Qwen3-30B-A3B 56 GiB."""
ENGINE_BEGINS = "Initializing a V1 LLM engine"
"""vLLM's message after the imports of the engine core."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Start:
    """How a server's start went."""

    contender: str
    server: Server | None
    """It answers, and is stopped (SIGSTOP); None: it failed."""
    seconds: float
    """In which it was not stopped, until it answered."""
    failed: str = ""


class Pairs:
    """All servers of a comparison; use it in a ``with`` statement, which ends them.

    Args:
        specs: by contender, in the order in which they are measured.
        say: takes a line on what happens.
    """

    def __init__(self, specs: Mapping[str, Spec], say: Callable[[str], None]) -> None:
        self._specs, self._say = dict(specs), say
        self._stack = ExitStack()
        self._servers: dict[str, Server] = {}
        self._went_on: dict[str, float] = {}
        """Seconds of a start before it was stopped."""
        self._began = time.monotonic()
        self.pairs = [[*specs][first : first + AT_ONCE] for first in range(0, len(specs), AT_ONCE)]

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._servers = {
            contender: self._stack.enter_context(spec.start())
            for contender, spec in self._specs.items()
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answering(self, pair: Sequence[str], deadline: float) -> list[Start]:
        """Let a pair's servers go on until they answer, and stop them then; others wait.

        Args:
            deadline: by time.monotonic().
        """
        began = time.monotonic()
        for contender in pair:
            self._servers[contender].child.resume()
        found: dict[str, Start] = {}
        while len(found) < len(pair):
            self._hold_others(pair)
            for contender in pair:
                if contender not in found:
                    done = self._look(contender, began, deadline)
                    found |= {} if done is None else {contender: done}
            time.sleep(POLL_SECONDS)
        self._hold_others(pair, at_once=True)
        return [found[contender] for contender in pair]

    def end(self, contender: str) -> None:
        """End a server, whose memory is for the next pair."""
        self._servers.pop(contender).child.stop()

    def _look(self, contender: str, began: float, deadline: float) -> Start | None:
        server, now = self._servers[contender], time.monotonic()
        seconds = now - began + self._went_on.get(contender, 0.0)
        try:
            if server.is_healthy():
                server.child.pause()  # an idle probe would measure the other's start
                self._say(f"{contender}: answers after {seconds:.0f} s")
                return Start(contender, server, seconds)
            if now > deadline:
                raise ProcessError(f"the server did not answer in {seconds:.0f} s")
        except ProcessError as error:
            return Start(contender, None, seconds, str(error))
        return None

    def _hold_others(self, pair: Sequence[str], at_once: bool = False) -> None:
        """Stop the servers of later pairs whose engine begins.

        Args:
            at_once: stop those that are not as far yet too: a load runs alone.
        """
        for contender, server in self._servers.items():
            if contender in pair or contender in self._went_on:
                continue
            if at_once or ENGINE_BEGINS in server.child.log.read_text("utf-8", "replace"):
                server.child.pause()
                self._went_on[contender] = time.monotonic() - self._began
