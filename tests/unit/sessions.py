"""Makes sessions without vLLM: parts of the tests' own, put together as a start does."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from test_engine import config as accepted

from vllm_nfp.adapter.steps import StepLimits
from vllm_nfp.config import ProbeConfig
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.table import Table, plain_table
from vllm_nfp.session.agreement import Alone
from vllm_nfp.session.looks import Looks
from vllm_nfp.session.output import Output
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.session.session import Session
from vllm_nfp.session.started import Agreement, Lead, Started
from vllm_nfp.session.worker import StartCost, Worker
from vllm_nfp.surface import GENERIC, CostSurface, generic_prior
from vllm_nfp.timing import Periods, Sampler


def wait_for(reached: Callable[[], bool]) -> None:
    """What a thread in the background does, which a busy machine may do late."""
    end = time.monotonic() + 120.0
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.01)


def vllm_config(rank: int = 0, tensor_parallel_size: int = 1) -> SimpleNamespace:
    """The configuration of an engine that can be probed."""
    made: SimpleNamespace = accepted(
        parallel_config__data_parallel_index=0,
        parallel_config__rank=rank,
        parallel_config__tensor_parallel_size=tensor_parallel_size,
        model_config__model="m",
        model_config__served_model_name="m",
    )
    return served_by(made)


def served_by(made: Any) -> Any:
    """With what the launcher and the scheduler of a server add to its configuration."""
    made.scheduler_config = SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=64)
    model = made.model_config
    for name, value in {
        "max_model_len": 4096, "dtype": "torch.bfloat16", "quantization": None,
        "enforce_eager": False,
        "hf_config": SimpleNamespace(architectures=["M"], to_dict=lambda: {"model_type": "new"}),
        "hf_text_config": SimpleNamespace(num_hidden_layers=2),
    }.items():  # fmt: skip
        if not hasattr(model, name):
            setattr(model, name, value)
    made.cache_config = SimpleNamespace(cache_dtype="auto", num_gpu_blocks=9, block_size=16)
    made.compilation_config = SimpleNamespace(cudagraph_mode=None, cudagraph_capture_sizes=None)
    if not hasattr(made, "speculative_config"):
        made.speculative_config = None
    return made


def made_results(config: ProbeConfig, table: Table | None = None) -> Results:
    """Nothing measured yet, on a server of which nothing is known."""
    table = table or plain_table(
        config.batch_sizes, config.contexts, config.grid, 4096, 64, lambda *_: "none"
    )
    return Results(
        config, CostSurface(generic_prior(CapturedGraphs(), config.max_positions), GENERIC), table
    )


class Shown(Output):
    """Shows each snapshot that it hands over.

    Args:
        config: names the folders.
        shown: takes the snapshots.
    """

    def __init__(self, config: ProbeConfig, shown: Callable[[Snapshot], None]) -> None:
        super().__init__(config)
        self._shown = shown

    def _hand_over(self, snapshot: Snapshot) -> None:
        self._shown(snapshot)
        super()._hand_over(snapshot)


_made: list[Session] = []


def _ending(session: Session) -> Session:
    """The session, which :func:`end_all` ends."""
    _made.append(session)
    return session


def end_all() -> None:
    """Disable what tests have left active, so that no thread of theirs goes on."""
    for session in _made:
        if session.active:
            session.disable("the test is over", expected=True)
    _made.clear()


def session_of(
    config: ProbeConfig | None = None,
    engine: Any = None,
    begun: float | None = None,
    now: Callable[[], float] = time.monotonic,
    show: Callable[[Snapshot], None] = lambda _: None,
) -> Session:
    """A session that has not started."""
    config = (config or ProbeConfig()).for_server(8, 4096)
    cost = StartCost(now() if begun is None else begun, now)
    return _ending(Session(Worker(config, engine or vllm_config(), cost), Shown(config, show)))


def serving(
    watcher: Any,
    tokens: int,
    agreement: Agreement | None = None,
    show: Callable[[Snapshot], None] = lambda _: None,
    engine: Any = None,
) -> Session:
    """A session that serves, and has looked at all of its first steps.

    Args:
        watcher: a prober, or what passive mode has in its place; None on a rank that follows.
        tokens: the most that a step may hold.
    """
    worker = Worker(ProbeConfig().for_server(8, 4096), vllm_config(), StartCost(time.monotonic()))
    output = Shown(worker.config, show)
    view: Any = SimpleNamespace(decode_positions=1)
    periods = Periods() if watcher is None else watcher.timer.periods
    looks = Looks(Sampler(first=1), StepLimits(sequences=64, tokens=tokens), view, periods)
    lead = None
    if watcher is not None:
        times = watcher.timer.times
        results = made_results(worker.config)
        lead = Lead(watcher, Publisher(worker.config, worker.identity, times, results, output))
    started = Started(agreement or Alone(), looks, engine, lead)
    session = _ending(Session(worker, output, lambda *_: started))
    session.after_warm_up(None)
    return session


def started_of(session: Session) -> Started:
    """What serves."""
    assert session._started is not None
    return session._started


def lead_of(session: Session) -> Lead:
    """What the leading rank has."""
    lead = started_of(session).lead
    assert lead is not None
    return lead
