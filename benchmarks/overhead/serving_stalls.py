"""Claim: what the probe's background thread does can hardly be felt in the serving thread.

    OMP_NUM_THREADS=1 python -m benchmarks.overhead.serving_stalls

A serving thread is imitated: each decode step runs :data:`CALLS` short stretches of Python, lets go
of the interpreter after each, as PyTorch's operators do, and then waits for the device. Every tenth
step reads a prompt: it has no CUDA graph, so that it is :data:`PROMPT_CALLS` such stretches, and
the device waits for the host (a model with experts on an H200: 60 to 90 ms). A second thread always
waits, as in a server. The probe's publisher runs beside it, with the table and the traffic of
:mod:`benchmarks.overhead.publish_cost`, at its own times. Without the publisher and with it take
turns. Printed is how long steps are: all of them, and those in which the background thread was at
work.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.overhead.publish_cost import PUBLISH_SECONDS, BusyServer, prior_of_server
from vllm_nfp.give_way import serving

STREAMS = 16
"""Busy on average, in the traffic that the publisher is told of."""
CALLS, PROMPT_CALLS = 40, 1000
DECODES = 9
"""From one prompt to the next."""
PYTHON_ROUNDS = 3600
"""Of a loop, between two calls: some 60 us."""
DEVICE_SECONDS = 3e-3
_BUFFER = bytes(16384)
"""Hashing it takes some 10 us, without the interpreter."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Imitated steps, in seconds.

    Attributes:
        begins: of each.
        lengths: of each.
        prompts: whether it reads a prompt.
    """

    begins: NDArray[np.float64]
    lengths: NDArray[np.float64]
    prompts: NDArray[np.bool_]


def serve(seconds: float) -> Steps:
    """Run steps for so long."""
    found: list[tuple[float, float, bool]] = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        prompt = len(found) % (DECODES + 1) == DECODES
        if prompt:
            serving.begin(True)
        for _ in range(PROMPT_CALLS if prompt else CALLS):
            for _ in range(PYTHON_ROUNDS):
                pass
            hashlib.sha256(_BUFFER)
        serving.end()
        if not prompt:
            time.sleep(DEVICE_SECONDS)
        found.append((begun, time.perf_counter() - begun, prompt))
    begins, lengths, prompts = np.array(found).T
    return Steps(begins, lengths, prompts.astype(bool))


def joined(parts: list[Steps]) -> Steps:
    """All steps, one part after the other."""
    return Steps(
        np.concatenate([part.begins for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.prompts for part in parts]),
    )


class Background:
    """The probe's publisher in a thread of its own, and when it was at work."""

    def __init__(self, server: BusyServer) -> None:
        self._publisher = server.publisher
        self._stop = threading.Event()
        self.spans: list[tuple[float, float]] = []
        self.cpu_seconds = 0.0

    def run(self) -> None:
        """Publish as the publisher's own thread does."""
        while not self._stop.wait(PUBLISH_SECONDS):
            begun, cpu = time.perf_counter(), time.thread_time()
            self._publisher._work(time.monotonic(), publish=True)
            self.spans.append((begun, time.perf_counter()))
            self.cpu_seconds += time.thread_time() - cpu

    def stop(self) -> None:
        """End :meth:`run`."""
        self._stop.set()


def overlaps(steps: Steps, spans: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """Whether a step and any of the spans have a moment in common."""
    found = np.zeros(len(steps.begins), dtype=bool)
    for begin, end in spans:
        found |= (steps.begins < end) & (steps.begins + steps.lengths > begin)
    return found


def told(name: str, lengths: NDArray[np.float64]) -> str:
    """Quantiles in milliseconds."""
    at = np.quantile(lengths, (0.5, 0.9, 0.99, 0.999)) * 1e3
    names = ("p50", "p90", "p99", "p99.9")
    texts = ", ".join(f"{of} {value:.2f}" for of, value in zip(names, at, strict=True))
    return f"{name}: n {len(lengths)}, {texts} ms"


@click.command()
@click.option("--seconds", default=20.0, show_default=True, help="Of each turn.")
@click.option("--turns", default=3, show_default=True, help="Of each, without and with.")
def main(seconds: float, turns: int) -> None:
    """Print how long steps are without the publisher and with it."""
    alone: list[Steps] = []
    beside: list[Steps] = []
    spans: list[tuple[float, float]] = []
    cpu = 0.0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for _ in range(turns):
            server = BusyServer(Path(folder), prior_of_server(), STREAMS)
            background = Background(server)
            thread = threading.Thread(target=background.run, name="nfp-publisher")
            idle = threading.Event()
            waiting = threading.Thread(target=idle.wait)
            waiting.start()
            alone.append(serve(seconds))
            idle.set()
            waiting.join()
            server.tell()
            thread.start()
            for _ in range(int(seconds / PUBLISH_SECONDS)):
                beside.append(serve(PUBLISH_SECONDS))
                server.tell()
            background.stop()
            thread.join()
            cpu += background.cpu_seconds
            spans += background.spans
    without, together = joined(alone), joined(beside)
    met = overlaps(together, spans)
    for name, prompts in (("decodes", False), ("prompts", True)):
        mine = together.prompts == prompts
        print(told(f"{name} alone", without.lengths[without.prompts == prompts]))
        print(told(f"{name} beside the publisher", together.lengths[mine]))
        print(told(f"{name} while it works", together.lengths[mine & met]))
    print(f"it took {100 * cpu / (turns * seconds):.2f} % of a core")


if __name__ == "__main__":
    main()
