"""What /metrics tells of a real engine's steps against what they were, prompts mixed in.

Real steps are timed by a clock that each of them moves on by its number of tokens: on a busy
machine a few steps take as long as hundreds, of which no sample says anything.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from parts import attach, prober_of, publisher_of, started_engine
from rounds import rounds

from vllm_nfp.adapter.engines import worker_of
from vllm_nfp.config import config_from_mapping
from vllm_nfp.metrics.families import families_of
from vllm_nfp.timing import HostClock, Sampler
from vllm_nfp.timing.sampling import LOOKED_ONE_IN

# Minutes long; tests/unit/test_step_truth.py checks the same by simulation each time.
pytestmark = [pytest.mark.engine, pytest.mark.thorough]

MOST_TOKENS = 256
"""--max-num-batched-tokens: a prompt of 300 tokens takes a full step, and one for the rest."""
STEPS = 3000
SIGMAS = 4.0


@dataclass
class Truth:
    """Steps as a wrapper closer to the runner than the probe's has seen them."""

    now: float = 0.0
    """Of a clock that steps alone move on."""
    seconds: list[float] = field(default_factory=list)
    decode: list[bool] = field(default_factory=list)
    full: list[bool] = field(default_factory=list)

    def begin(self, planned: Any) -> None:
        counts = planned.num_scheduled_tokens
        if counts:
            self.decode.append(set(counts.values()) == {1} and not planned.scheduled_new_reqs)
            self.full.append(planned.total_num_scheduled_tokens >= MOST_TOKENS)
            self.seconds.append(0.01 + 5e-4 * planned.total_num_scheduled_tokens)

    def end(self) -> None:
        self.now += self.seconds[-1]

    def sampled(self, values: Sequence[float]) -> list[float]:
        """Those of the steps that chance alone looks at."""
        return [v for v, full in zip(values, self.full, strict=True) if not full]


@pytest.fixture
def llm(dense_model: Path) -> Iterator[Any]:
    with started_engine(
        dense_model, dtype="float32", max_num_seqs=64, max_num_batched_tokens=MOST_TOKENS,
        distributed_executor_backend="uni", enable_prefix_caching=False,
    ) as started:  # fmt: skip
        yield started


def watch(runner: Any, truth: Truth) -> None:
    execute_model, sample_tokens = runner.execute_model, runner.sample_tokens

    def execute(planned: Any, *args: Any, **kwargs: Any) -> Any:
        truth.begin(planned)
        return execute_model(planned, *args, **kwargs)

    def sample(*args: Any, **kwargs: Any) -> Any:
        result = sample_tokens(*args, **kwargs)
        truth.end()
        return result

    runner.execute_model, runner.sample_tokens = execute, sample


def serve(llm: Any, truth: Truth, steps: int, prompts: float) -> None:
    """So many steps of four sequences, with new prompts of 300 tokens at so many of them."""
    from vllm import SamplingParams

    rng, engine, end = random.Random(5), llm.llm_engine, len(truth.seconds) + steps

    def add(length: int, tokens: int) -> None:
        params = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        ids = [rng.randrange(2, 512) for _ in range(length)]
        engine.add_request(f"{rng.random()}", {"prompt_token_ids": ids}, params)

    while len(truth.seconds) < end:
        if engine.get_num_unfinished_requests() < 4:
            add(16, rng.randrange(100, 300))
        if rng.random() < prompts:
            add(300, rng.randrange(2, 8))
        engine.step()
    while engine.has_unfinished_requests():
        engine.step()


def metric(snapshot: Any, name: str) -> float:
    return sum(
        sample.value
        for family in families_of([snapshot], lambda _: None)
        for sample in family.samples
        if sample.name == name
    )


def bound(values: Sequence[float]) -> float:
    """Largest error of a sum over sampled steps: 4/3 (m - 1) n v is its variance.

    A look stands for x steps, uniform from 1 to 2m - 1; v is the variance of the n values. Steps
    since the last look are in no sum yet.
    """
    variance = 4.0 / 3.0 * (LOOKED_ONE_IN - 1) * len(values) * statistics.pvariance(values)
    return SIGMAS * math.sqrt(variance) + 2 * LOOKED_ONE_IN * statistics.mean(values)


def test_steps_and_overhead_are_told_as_they_are(llm: Any, tmp_path: Path) -> None:
    worker = worker_of(llm)
    truth = Truth()
    watch(worker.model_runner, truth)
    config = config_from_mapping(
        {
            "batch_sizes": [1, 4],
            "contexts": [64],
            "max_positions": 4,
            "startup_seconds": 0.3,
            "capture_seconds": 2.0,
            "overhead_budget": 0.04,
            "run_dir": str(tmp_path),
        }
    )
    session = attach(config, worker)
    prober, publisher = prober_of(session), publisher_of(session)
    session._started.looks._sampler = Sampler(first=1)
    prober.timer._clock = HostClock(lambda: truth.now)
    for _ in rounds():  # a full step leaves no allowance for probes
        serve(llm, truth, 300, prompts=0.0)
        if prober.outcomes["measured"]:
            break
    serve(llm, truth, STEPS, prompts=0.15)
    assert session.active
    prober.settle()
    told = publisher.snapshot()
    session.disable("the test is over", expected=True)

    decodes, seconds = sum(truth.decode), sum(truth.seconds)
    steps_total = metric(told, "vllm_nfp_steps_total")
    ratio = metric(told, "vllm_nfp_overhead_ratio")
    true_ratio = told.probe_seconds / (seconds + told.probe_seconds)
    print(
        f"{len(truth.seconds)} steps, {sum(truth.full)} full, {decodes} decode; "
        f"told {steps_total:.0f}; overhead {true_ratio:.5f}; told {ratio:.5f}"
    )
    assert told.probes["measured"] > 0 and sum(truth.full) > STEPS / 20
    assert steps_total == pytest.approx(
        decodes, abs=bound([float(d) for d in truth.sampled(truth.decode)])
    )
    assert ratio == pytest.approx(true_ratio, rel=bound(truth.sampled(truth.seconds)) / seconds)
