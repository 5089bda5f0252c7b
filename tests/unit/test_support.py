"""What the probe does where it cannot probe, and which rank of an engine does it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_engine import OTHER_ALL2ALL, UNKNOWN_HYBRID, ec_transfer, kv_transfer
from test_engine import config as accepted

pytest.importorskip("vllm")

from sessions import lead_of, served_by, session_of, started_of

from vllm_nfp.adapter import predictions, support, versions
from vllm_nfp.adapter.attention_groups import CellDoesNotFitError
from vllm_nfp.adapter.layers import UnsupportedModelError
from vllm_nfp.adapter.predictions import NoGroundError
from vllm_nfp.adapter.presence import RanksDifferError
from vllm_nfp.adapter.runners import UnknownRunnerError
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.config import ProbeConfig
from vllm_nfp.principle.live import Ground
from vllm_nfp.probe.kv_proof import KvCacheWrittenError
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule.lockstep import PeerFaultError
from vllm_nfp.session import in_lockstep, start_probing
from vllm_nfp.session import start as module
from vllm_nfp.session.agreement import Alone
from vllm_nfp.session.output import Output
from vllm_nfp.session.session import Session
from vllm_nfp.session.start_probing import NothingToProbeError
from vllm_nfp.session.timing_only import TimingOnly
from vllm_nfp.types import Basis, ShapeRefusedError, State

REFUSED: list[tuple[dict[str, Any], str, bool]] = [
    ({"parallel_config__pipeline_parallel_size": 2}, "--pipeline-parallel-size 2", False),
    ({"parallel_config__decode_context_parallel_size": 2}, "--decode-context-parallel", False),
    ({"parallel_config__prefill_context_parallel_size": 2}, "--prefill-context-parallel", False),
    (OTHER_ALL2ALL, "--all2all-backend new_low_latency", True),
    ({"parallel_config__use_ubatching": True}, "--enable-dbo", False),
    ({"parallel_config__enable_elastic_ep": True}, "--enable-elastic-ep", False),
    (UNKNOWN_HYBRID, "recurrent (mamba) state", False),
    ({"model_config__is_attention_free": True}, "recurrent (mamba) state", False),
    ({"model_config__is_encoder_decoder": True}, "encoder-decoder", False),
    ({"model_config__enable_sleep_mode": True}, "sleep mode", True),
    ({"kv_transfer_config": kv_transfer("New")}, "KV connector New", True),
    ({"ec_transfer_config": ec_transfer("New")}, "encoder-cache connector New", True),
    ({"lora_config": object()}, "--enable-lora", False),
    ({"offload_config__offload_backend": "prefetch"}, "offloaded", False),
    ({"offload_config__uva": SimpleNamespace(cpu_offload_gb=1)}, "offloaded", False),
]
"""Change to a configuration that is probed, what the reason names, and whether the predictor knows
all that takes time in its steps."""


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.32.0")


@pytest.mark.parametrize(("changes", "reason", "predicted"), REFUSED)
def test_what_cannot_be_probed_is_timed_and_says_why(
    changes: dict[str, Any], reason: str, predicted: bool
) -> None:
    found = support.decide(accepted(**changes))
    assert found.mode is Mode.PASSIVE
    assert reason in found.reason
    assert (support.unpredicted(accepted(**changes)) is None) is predicted


def test_a_plain_decoder_is_probed_and_predicted() -> None:
    assert support.decide(accepted()).mode is Mode.ACTIVE
    assert support.unpredicted(accepted()) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_config__runner_type": "pooling"}, "'pooling' decodes nothing"),
        ({"ec_transfer_config": SimpleNamespace(ec_role="ec_producer")}, "only encodes"),
    ],
)
def test_an_engine_without_decode_steps_stays_off_and_says_why(
    changes: dict[str, Any], reason: str
) -> None:
    found = support.decide(accepted(**changes))
    assert found.mode is Mode.OFF
    assert reason in found.reason


@pytest.mark.parametrize(
    ("tensor", "pipeline", "nodes", "executor", "reporting"),
    [
        (1, 1, 1, "uni", [0]),
        (2, 1, 1, "mp", [0]),
        (1, 2, 1, "mp", [1]),
        (2, 2, 1, "mp", [2]),
        (2, 3, 1, "mp", [4]),
        (2, 2, 2, "mp", [0]),
        (2, 2, 1, "ray", [0]),
    ],
)
def test_one_rank_of_an_engine_reports_where_tokens_are_sampled(
    tensor: int, pipeline: int, nodes: int, executor: str, reporting: list[int]
) -> None:
    made = [
        SimpleNamespace(
            tensor_parallel_size=tensor, pipeline_parallel_size=pipeline,
            prefill_context_parallel_size=1, nnodes=nodes, rank=rank,
            distributed_executor_backend=executor,
        )
        for rank in range(tensor * pipeline)
    ]  # fmt: skip
    assert [parallel.rank for parallel in made if support.reports(parallel)] == reporting


def test_each_engine_under_an_external_launcher_has_a_rank_that_reports() -> None:
    ranks = [
        SimpleNamespace(
            tensor_parallel_size=2, pipeline_parallel_size=1, prefill_context_parallel_size=1,
            nnodes=1, rank=rank, distributed_executor_backend="external_launcher",
        )
        for rank in range(4)
    ]  # fmt: skip
    assert [parallel.rank for parallel in ranks if support.reports(parallel)] == [0, 2]


def served(rank: int = 0, tensor_parallel_size: int = 1, **changes: Any) -> Any:
    made = accepted(parallel_config__tensor_parallel_size=tensor_parallel_size, **changes)
    made.parallel_config.rank, made.parallel_config.data_parallel_index = rank, 0
    made.parallel_config.distributed_executor_backend = "mp"
    made.model_config.served_model_name = "m"
    return served_by(made)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Snapshot]]:
    """What sessions hand to /metrics; their runner is one of the known ones."""
    view = SimpleNamespace(
        device=torch.device("cpu"),
        name="v1",
        runner=SimpleNamespace(attn_groups=[]),
        decode_positions=1,
    )
    monkeypatch.setattr(module, "view_of", lambda _: view)
    snapshots: list[Snapshot] = []
    made: list[Output] = []
    make, write = Output.__init__, Output.write

    def made_here(output: Output, config: ProbeConfig) -> None:
        make(output, config)
        made.append(output)

    def note(output: Output, snapshot: Snapshot) -> None:
        # The thread of another test's session may still be there, and write.
        if output in made and not output._silent:
            snapshots.append(snapshot)
        write(output, snapshot)

    monkeypatch.setattr(Output, "__init__", made_here)
    monkeypatch.setattr(Output, "write", note)
    yield snapshots


def output(context: int) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens={"a": 1, "b": 1}, total_num_scheduled_tokens=2,
        scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=[context] * 2),
        scheduled_new_reqs=[], scheduled_encoder_inputs={}, preempted_req_ids=(),
    )  # fmt: skip


def run_steps(session: Session, count: int = 3) -> Snapshot:
    """Real steps, and what the session tells of them."""
    for _ in range(count):
        session.before_step(output(7))
        session.after_step()
    lead = lead_of(session)
    lead.watcher.timer.settle()
    return lead.publisher.snapshot()


@pytest.mark.parametrize("changes", [changes for changes, *_ in REFUSED])
def test_steps_are_timed_and_nothing_of_a_probe_is_made(
    changes: dict[str, Any], told: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object) -> None:
        raise AssertionError("a probe engine was made")

    monkeypatch.setattr(start_probing, "ProbeEngine", made)
    engine = served(**changes)
    if not support.reports(engine.parallel_config):
        engine.parallel_config.rank = 1
    session = session_of(ProbeConfig(overhead_budget=0.5), engine)
    session.after_warm_up(object())
    found = run_steps(session)
    assert (found.state, found.overhead_budget) == (State.PASSIVE, 0.0)
    assert found.reason == support.refusal(engine)
    assert [(row.batch_size, row.samples) for row in found.steps] == [(2, 3)]
    assert found.probes == {}
    assert started_of(session).engine is None
    assert isinstance(lead_of(session).watcher, TimingOnly)
    session.disable("the test is over", expected=True)
    assert not session.active


def test_with_several_ranks_all_decide_alike_and_none_waits(
    told: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    def joined(*_: object) -> None:
        raise AssertionError("a rank waits for others")

    monkeypatch.setattr(module, "join", joined)
    active = []
    for rank in range(2):
        session = session_of(engine=served(rank, 2, lora_config=object()))
        session.after_warm_up(object())
        active.append(session.active)
        if session.active:
            assert isinstance(started_of(session).agreement, Alone)
            lead_of(session).publisher.stop()
    assert active == [True, False]
    assert {snapshot.state for snapshot in told} == {State.PASSIVE}


@pytest.mark.parametrize("leads", [True, False])
def test_a_rank_whose_peers_lack_its_probe_waits_for_none(
    leads: bool, told: list[Snapshot], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    reason = "rank 1 has other probe settings"

    def differ() -> None:
        raise RanksDifferError(reason)

    monkeypatch.setattr(in_lockstep, "check_tensor_ranks", differ)
    monkeypatch.setattr(in_lockstep, "tensor_wire", lambda: pytest.fail("it waits for the others"))
    monkeypatch.setattr(module.bindings, "is_known", lambda _: True)
    session = session_of(engine=served(0 if leads else 1, 2))
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        session.after_warm_up(object())
    assert session.active is leads
    assert reason in caplog.text
    if leads:
        found = run_steps(session)
        assert (found.state, found.reason) == (State.PASSIVE, reason)
        assert [row.samples for row in found.steps] == [3]
        session.disable("the test is over", expected=True)
    else:
        assert told == []


def test_an_engine_that_stays_off_is_told_by_one_rank(told: list[Snapshot]) -> None:
    for rank in range(2):
        made = served(rank, 2, model_config__runner_type="pooling")
        session_of(engine=made).after_warm_up(object())
    assert [snapshot.state for snapshot in told] == [State.DISABLED]


KNOWN = [
    UnsupportedModelError("it has no list of decoder layers"),
    CellDoesNotFitError("the KV cache packs layers of different page sizes together"),
    NothingToProbeError("no cell can be probed: it leaves no room"),
    NothingToProbeError("no cell can be probed: no shape has a CUDA graph"),
    ShapeRefusedError("Shape(batch_size=1, context=32, positions=1) cannot run on every rank"),
    torch.OutOfMemoryError("CUDA out of memory"),
]


@pytest.mark.parametrize("error", KNOWN, ids=lambda error: type(error).__name__)
def test_what_turns_out_at_the_start_not_to_be_probeable_is_timed(
    error: Exception, told: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_build(monkeypatch, error)
    session = session_of(engine=served())
    session.after_warm_up(object())
    found = run_steps(session)
    assert (found.state, found.reason) == (State.PASSIVE, str(error))
    assert [row.samples for row in found.steps] == [3]
    session.disable("the test is over", expected=True)


@pytest.mark.parametrize(
    "error", [KvCacheWrittenError("a probe changed the KV cache"), RuntimeError("a bug")]
)
def test_a_fault_at_the_start_disables_the_probe_all_the_same(
    error: Exception, told: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_build(monkeypatch, error)
    session = session_of(engine=served())
    session.after_warm_up(object())
    assert not session.active
    assert told[-1].state is State.DISABLED
    assert "fault in stage attach" in told[-1].reason


@pytest.mark.parametrize("refusal", ["it leaves no room", None])
def test_without_a_cell_to_probe_steps_are_timed_and_what_was_made_is_given_up(
    refusal: str | None, told: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Engine:
        def __init__(self, *_: object) -> None:
            pass

        def check_kv_cache_untouched(self) -> None:
            pass

        def prepare(self, time_is_up: Callable[[], bool]) -> None:
            pass

        def refusal(self, batch_size: int, context: int) -> str | None:
            return refusal

        def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
            return (1,)

        def close(self) -> None:
            closed.append("closed")

    monkeypatch.setattr(start_probing, "ProbeEngine", Engine)
    session = session_of(engine=served())
    session.after_warm_up(object())
    assert closed == ["closed"]
    found = run_steps(session)
    assert found.state is State.PASSIVE, "it is a limit, and no fault"
    assert found.reason == f"no cell can be probed: {refusal or 'no shape has a CUDA graph'}"
    session.disable("the test is over", expected=True)


def test_a_runner_that_is_not_known_is_off_by_name_and_no_fault(
    told: list[Snapshot], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(_: object) -> None:
        raise UnknownRunnerError("model runner MMEncoderModelRunner is unknown")

    monkeypatch.setattr(module, "view_of", unknown)
    configurations = (served(), served(lora_config=object()), served(0, 2))
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        for vllm_config in configurations:
            session = session_of(engine=vllm_config)
            session.after_warm_up(object())
            assert not session.active
            assert told[-1].state is State.DISABLED
            assert "MMEncoderModelRunner is unknown" in told[-1].reason
    assert len(told) == len(configurations)
    assert not any(record.exc_info for record in caplog.records)


class Joined:
    """The lockstep of one of two ranks; notes what it tells the other."""

    def __init__(self, rank: int) -> None:
        self.rank, self.leads, self.told = rank, rank == 0, 0

    def agree(self, possible: bool, topic: str = "") -> bool:
        return possible

    def fail_now(self) -> None:
        self.told += 1

    def least(self, value: int, topic: str) -> int:
        return value


@pytest.mark.parametrize("error", KNOWN, ids=lambda error: type(error).__name__)
def test_of_several_ranks_the_first_times_its_steps_and_none_waits(
    error: Exception, told: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_build(monkeypatch, error)
    monkeypatch.setattr(module.bindings, "is_known", lambda _: True)
    for rank in range(2):
        lockstep = Joined(rank)
        monkeypatch.setattr(module, "join", lambda _, one=lockstep: one)
        session = session_of(engine=served(rank, 2))
        session.after_warm_up(object())
        assert lockstep.told == 1, "the other rank would wait"
        assert session.active is (rank == 0)
        if rank == 0:
            found = run_steps(session)
            assert (found.state, found.reason) == (State.PASSIVE, str(error))
            assert [row.samples for row in found.steps] == [3]
            session.disable("the test is over", expected=True)
    assert {snapshot.state for snapshot in told} == {State.PASSIVE, State.DISABLED}
    assert not session.active


def test_a_fault_of_another_rank_at_the_start_disables(
    told: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_build(monkeypatch, PeerFaultError("rank 1 of 2 has a fault"))
    monkeypatch.setattr(module.bindings, "is_known", lambda _: True)
    lockstep = Joined(0)
    monkeypatch.setattr(module, "join", lambda _: lockstep)
    session = session_of(engine=served(0, 2))
    session.after_warm_up(object())
    assert not session.active
    assert lockstep.told == 0
    assert told[-1].state is State.DISABLED


def fail_to_build(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def build(*_: object) -> None:
        raise error

    monkeypatch.setattr(start_probing, "ProbeEngine", build)


H100 = "NVIDIA H100 80GB HBM3"
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256,
}  # fmt: skip


def ground_of(engine: Any, device: str = "cuda") -> Ground:
    return predictions.served_ground(engine, torch.device(device), ("FLASH_ATTN",))


def of_model(config: dict[str, Any], **changes: Any) -> Any:
    hf_config = SimpleNamespace(to_dict=lambda: config, architectures=["M"])
    return served(**{"model_config__hf_config": hf_config, **changes})


@pytest.mark.parametrize("changes", [changes for changes, _, predicted in REFUSED if not predicted])
def test_there_is_no_prediction_of_what_the_predictor_does_not_know(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: H100)
    with pytest.raises(NoGroundError, match="the predictor does not know "):
        ground_of(of_model(LLAMA, **changes))
    assert ground_of(of_model(LLAMA)).target.hardware.name == "H100-SXM"


def test_a_worker_without_a_session_says_so_on_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.adapter import observer
    from vllm_nfp.adapter.patch import PatchSet
    from vllm_nfp.plugin import open_observer
    from vllm_nfp.results.snapshot import read_snapshot

    worker = SimpleNamespace(vllm_config=SimpleNamespace(), model_runner=object())
    config = ProbeConfig(run_dir=str(tmp_path))
    assert observer.start(worker, config, open_observer, None, PatchSet()) is None
    left = read_snapshot(tmp_path / "engine-0.json")
    assert left.state is State.DISABLED
    assert "cannot be hooked" in left.reason


@pytest.mark.parametrize(
    ("config", "gpu", "device", "reason"),
    [
        ({"model_type": "new"}, H100, "cuda", "new"),
        (LLAMA, "Some GPU", "cuda", "the GPU Some GPU is not in the hardware catalogue"),
        (LLAMA, H100, "cpu", "steps run on a CPU"),
    ],
)
def test_what_the_predictor_does_not_know_is_named(
    config: dict[str, Any], gpu: str, device: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: gpu)
    with pytest.raises(NoGroundError) as caught:
        ground_of(of_model(config), device)
    assert reason in str(caught.value)


def test_where_nothing_can_be_predicted_answers_are_a_guess_that_says_so(
    told: list[Snapshot],
) -> None:
    session = session_of(ProbeConfig(passive=True), served())
    session.after_warm_up(object())
    (found,) = told
    assert (found.prior, found.prior_reason) == ("generic", "steps run on a CPU")
    assert {(row.module, row.basis) for row in found.boundaries} == {
        (module, Basis.PREDICTED) for module in ("model", "attention", "dense_ffn")
    }
    assert {row.batch_size for row in found.boundaries} == {1, 2, 4, 8}
    assert {row.context for row in found.boundaries} == {256, 1024}
    assert found.predictions == ()
    session.disable("the test is over", expected=True)
