"""Claim: the probe's background thread takes 0.5 % of a core while a server is busy.

    OMP_NUM_THREADS=1 python -m benchmarks.overhead.publish_cost

The real thing, as the probe's session makes it, without vLLM and a device: the publisher with the
table of a server of Qwen3-8B on an H200 at the defaults (batch sizes to 1024, contexts to 16k), a
surface after a scan of the start, and its files in a folder of /dev/shm. Traffic is told as the
timer tells it: random arrivals that keep so many streams busy bring steps of ever other batch sizes
and contexts, and a pair every ten seconds. Moments follow each other without the waits, so that
minutes of a server pass in seconds. What counts is CPU time of this thread. Printed are the mean
share of a core, and the CPU time of a publication and of a choice of what to probe.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from pathlib import Path
from unittest import mock

import click
import numpy as np

from benchmarks.answers.replay_cost import pairs_of
from benchmarks.serving.shapes import SHAPES
from vllm_nfp.config import ProbeConfig
from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.table import plain_table
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session import publisher as session
from vllm_nfp.session.output import Output
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.surface import RECORDED, CostSurface, Prior, predicted_prior
from vllm_nfp.timing import StepTimes
from vllm_nfp.timing.sampling import LOOKED_ONE_IN
from vllm_nfp.timing.steps import MOST_POSITIONS
from vllm_nfp.types import EngineStep, State

MOST_SEQUENCES, MOST_CONTEXT, MOST_TOKENS = 1024, 65536, 8192
PAIRS_AT_START = 20
PUBLISH_SECONDS, PAIR_TURNS = ProbeConfig().publish_seconds, 5
"""By default; and turns of it from one pair to the next."""
STEP_NOISE = 0.03
"""Deviation of a real step's time."""


class Traffic:
    """Steps of a server that serves some streams, of other lengths in each second."""

    def __init__(self, prior: Prior, streams: float, times: StepTimes, seed: int = 0) -> None:
        self._prior, self._streams, self._times = prior, streams, times
        self._random = random.Random(seed)
        self.last = EngineStep(1, 1024, 1, True)

    def run(self, seconds: float) -> None:
        """Tell the times of the steps of so many seconds."""
        left = seconds
        while left > 0.0:
            batch = max(1, round(self._random.gauss(self._streams, self._streams**0.5)))
            context = round(1100 * math.exp(self._random.gauss(0.0, 0.1)))
            cell = self._prior(batch, 64 * (context // 64 + 1))
            step = math.exp(float(cell.log_seconds(cell.modules[0])[0]))
            series = self._times.of(batch, context, 1)
            assert series is not None
            step *= 1.0 + self._random.gauss(0.0, STEP_NOISE)
            series.add(step, LOOKED_ONE_IN, batch, context)
            series.count += LOOKED_ONE_IN
            self.last = EngineStep(batch, context, 1, True)
            left -= LOOKED_ONE_IN * step


def prior_of_server() -> Prior:
    """Of Qwen3-8B on an H200."""
    shape, target = shape_from_config(SHAPES["qwen3-8b"]), target_of("H200")
    return predicted_prior(shape, target, Serving(), MOST_POSITIONS)


def publisher_of(folder: Path, prior: Prior, times: StepTimes) -> Publisher:
    """As a session opens it."""
    config = ProbeConfig(run_dir=str(folder)).for_server(MOST_SEQUENCES, MOST_CONTEXT)
    table = plain_table(
        config.batch_sizes, config.contexts, config.grid, MOST_CONTEXT, MOST_TOKENS,
        lambda *_: "full",
    )  # fmt: skip
    surface = CostSurface(
        prior, RECORDED, pairs_kept=config.max_samples, min_samples=config.min_samples
    )
    results = Results(config, surface, table)
    return Publisher(config, Snapshot("m", "0", State.WARMING), times, results, Output(config))


class BusyServer:
    """A publisher after the scan of the start, and the traffic that it is told of."""

    def __init__(self, folder: Path, prior: Prior, streams: float) -> None:
        times = StepTimes()
        self.publisher = publisher_of(folder, prior, times)
        self._traffic = Traffic(prior, streams, times)
        self._pairs = pairs_of(prior, PAIRS_AT_START)
        self._turn = 0
        for _ in range(PAIRS_AT_START):
            self.publisher.put(next(self._pairs))
        self.publisher.publish(self.publisher.snapshot())

    def tell(self) -> None:
        """The traffic from one publication to the next, and a pair now and then."""
        self._traffic.run(PUBLISH_SECONDS)
        if self._turn % PAIR_TURNS == 0:
            self.publisher.put(next(self._pairs))
        self._turn += 1
        self.publisher.count(Counters(last_step=self._traffic.last))


@click.command()
@click.option("--streams", default="4,16,64", show_default=True, help="Busy on average.")
@click.option("--seconds", default=120.0, show_default=True, help="Of traffic, each.")
def main(streams: str, seconds: float) -> None:
    """Print what the background thread takes; see the module's text."""
    prior = prior_of_server()
    for mean in map(float, streams.split(",")):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            print(measured(Path(folder), prior, mean, seconds), flush=True)


def measured(folder: Path, prior: Prior, streams: float, seconds: float) -> str:
    """A line of what so much traffic costs."""
    clock = Clock()
    with mock.patch.object(session, "time", clock):
        server = BusyServer(folder, prior, streams)
        took = []
        for _ in range(int(seconds / PUBLISH_SECONDS)):
            clock.now += PUBLISH_SECONDS
            server.tell()
            begun = time.thread_time()
            server.publisher._work(clock.now, publish=True)
            took.append(1e3 * (time.thread_time() - begun))
    return (
        f"{streams:g} streams: {sum(took) / seconds / 10:.2f} % of a core; a publication "
        f"{np.median(took):.1f} ms (median), {max(took):.1f} ms at most, "
        f"{np.mean(np.array(took) > 20.0):.0%} of them over 20 ms"
    )


class Clock:
    """In the place of the time module: moments follow each other without waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.thread_time = time.thread_time

    def monotonic(self) -> float:
        """The moment that was set."""
        return self.now


if __name__ == "__main__":
    main()
