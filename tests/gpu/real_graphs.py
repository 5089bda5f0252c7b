"""Run as a program: probe a real engine with real CUDA graphs, and print what was seen, as JSON.

    real_graphs.py MODEL RUN_DIR OUT.json piecewise|partition|full|late|kept|writes

Attaches the session itself, in this process, so that it can look at tensors before and after:

- ``piecewise``: PIECEWISE graphs between attention calls, as vLLM makes them by default;
- ``partition``: the same, partitioned by Inductor, where graphs store keys and values themselves;
- ``full``: FULL graphs for decoding;
- ``late``: as ``full``, in 64 MiB beside vLLM's own graphs; shapes of the whole table run for the
  first time, and are captured, after the start;
- ``kept``: as ``late``, with a run after the start that leaves a tensor in the graphs' memory;
- ``writes``: as ``full``, with a graph of one shape that changes a byte of the KV cache.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

SIZES = [1, 2, 4, 8, 16, 24, 32]
WRITING_SHAPE = (4, 4)
MODES: dict[str, dict[str, Any]] = {
    "piecewise": {"cudagraph_mode": "PIECEWISE"},
    "partition": {"cudagraph_mode": "PIECEWISE", "use_inductor_graph_partition": True},
    "full": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
    "late": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
    "kept": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
    "writes": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
}
SETTINGS = {
    "batch_sizes": [1, 4],
    "contexts": [32, 128],
    "max_positions": 8,
    "overhead_budget": 0.5,
    "capture_seconds": 30.0,
    "startup_seconds": 0.5,
    "publish_seconds": 0.2,
    "step_share": 1.0,
    # No pool of vLLM's is handed to the probe here: a pool of its own takes more.
    "share_graph_pool": False,
    "graph_memory_mib": 1024,
}
LATE = {
    **SETTINGS,
    "batch_sizes": [],
    "contexts": [],
    "capture_seconds": 0.0,
    "startup_seconds": 0.0,
    "wanted_samples": 1,
    "share_graph_pool": True,
    "graph_memory_mib": 64,
}


def engine_of(model: str, mode: str) -> Any:
    from vllm_nfp.adapter.engines import start_engine

    # What reads pictures needs its tokenizer; its small heads fit no fast kernel.
    pictures = (Path(model) / "processor_config.json").exists()
    more: dict[str, Any] = {"mm_encoder_attn_backend": "TORCH_SDPA"} if pictures else {}
    return start_engine(
        model,
        {
            "skip_tokenizer_init": not pictures, "dtype": "bfloat16", "max_model_len": 512,
            "max_num_seqs": 24, "gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 1 << 30,
            "compilation_config": {**MODES[mode], "cudagraph_capture_sizes": SIZES}, "seed": 0,
            "enable_prefix_caching": False, "distributed_executor_backend": "uni", **more,
        },
    )  # fmt: skip


def generate(llm: Any, tokens: int = 48) -> list[list[int]]:
    from vllm import SamplingParams

    requests = [{"prompt_token_ids": [7 + i, 30, 99, 200 + i] * 8} for i in range(4)]
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    return [list(o.outputs[0].token_ids) for o in llm.generate(requests, params, use_tqdm=False)]


def attach(worker: Any, run_dir: str, settings: dict[str, Any], place: Any) -> Any:
    from vllm_nfp.adapter.hooks import hook_runner
    from vllm_nfp.adapter.patch import PatchSet
    from vllm_nfp.config import config_from_mapping
    from vllm_nfp.session import open_session

    config = config_from_mapping({**settings, "run_dir": run_dir})
    session, patches = open_session(config, worker.vllm_config, time.monotonic()), PatchSet()
    session.after_warm_up(worker.model_runner, place, patches.restore)
    if session.active:
        hook_runner(patches, worker.model_runner, session)
    return session


def runs_of(session: Any) -> list[dict[str, Any]]:
    """Outputs of runs on stale buffers, beside those of plain runs on the ids of the token pool."""
    import torch

    from vllm_nfp.adapter.dispatch import Execution
    from vllm_nfp.types import Shape

    engine = session._started.engine
    forward = engine._runtime.forward
    live = forward._buffers
    entries = min(g.num_blocks * g.block_tokens for g in engine._availability.limits.groups)
    live.input_ids.fill_(7)
    live.positions.fill_(3)
    if live.is_padding is not None:
        live.is_padding.fill_(True)
    if live.embeds is not None:
        live.embeds.fill_(0.5)
    if live.rotary is not None:
        live.rotary.fill_(3)
    for slots in live.slots:  # as if the last step had stored something there
        slots.copy_(torch.arange(len(slots), device=slots.device) % entries)
    before = [tensor.clone() for tensor in live.tensors]
    outputs: list[Any] = []
    head = forward.run_head

    def run_head(batch: Any, hidden: Any) -> None:
        outputs.append(hidden[: batch.tokens].float().clone())
        head(batch, hidden)

    forward.run_head = run_head
    result = []
    for positions, draw in ((1, 3), (8, 3), (8, 4)):
        shape = Shape(4, 128, positions)
        while not engine.ready(shape):
            engine.make_ready([shape])
        outputs.clear()
        ticket = engine.launch(shape, draw)
        torch.cuda.synchronize()
        timing = engine.poll(ticket)
        batch = ticket.prepared.batch
        metadata = forward.metadata(batch, 128, for_capture=False)
        with forward.context(metadata, batch, Execution.NONE, compiled=False):
            plain = forward._view.model(**forward.inputs.fresh(batch))[: batch.tokens].float()
        seen = outputs[0] if outputs else None  # in a FULL graph no Python runs
        result.append(
            {
                "execution": timing.execution,
                "alike": None if seen is None else _alike(seen, plain),
                "ids": batch.input_ids[: batch.tokens].tolist(),
                "drawn": engine.tokens.draw(batch.tokens, draw).tolist(),
            }
        )
    forward.run_head = head
    after = live.tensors
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    return [*result, {"buffers_kept": same}]


def _alike(one: Any, other: Any) -> float:
    """The median cosine between rows: rounding may send a token to another expert."""
    import torch

    return float(torch.nn.functional.cosine_similarity(one, other, dim=-1).median())


def write_in_a_graph() -> None:
    """Have the graph of one shape change a value of the null block whenever it is replayed."""
    import torch

    from vllm_nfp.probe.forward import Forward

    real = Forward.run_model

    def run_model(forward: Any, batch: Any, metadata: Any) -> Any:
        hidden = real(forward, batch, metadata)
        shape = (batch.batch_size, batch.positions_per_sequence)
        if shape == WRITING_SHAPE and torch.cuda.is_current_stream_capturing():
            runner = forward._view.runner
            for cache in runner.kv_caches:
                dim = list(cache.shape).index(runner.kv_cache_config.num_blocks)
                block = cache.select(dim, 0).view(torch.int16)
                block.add_(1)
        return hidden

    Forward.run_model = run_model  # type: ignore[method-assign]


def count_late_runs(keep: bool) -> list[int]:
    """Have each run in the graphs' memory add the bytes that the device's reserve has grown by.

    Args:
        keep: the first one leaves a tensor there.
    """
    from contextlib import contextmanager

    import torch

    from vllm_nfp.probe import device_memory

    grown: list[int] = []
    kept: list[Any] = []
    real = device_memory.inside

    @contextmanager
    def inside(place: Any) -> Any:
        before = torch.cuda.memory_reserved()
        with real(place):
            yield
            if keep:
                kept.append(torch.zeros(1000, device="cuda"))
        grown.append(torch.cuda.memory_reserved() - before)

    device_memory.inside = inside
    return grown


def milliseconds_per_gib(engine: Any) -> float:
    """Of summing the whole KV cache up once."""
    import torch

    caches = engine._kv_check._caches()
    total = sum(
        {c.untyped_storage().data_ptr(): c.untyped_storage().nbytes() for c in caches}.values()
    )
    best = float("inf")
    for _ in range(3):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        engine._kv_check.checksum()
        best = min(best, time.perf_counter() - begun)
    return best * 1e3 * (1 << 30) / total


def proof_milliseconds(engine: Any) -> dict[str, float]:
    """Of the sums around one run, before and after together: on the host, and in all."""
    import torch

    batch = engine._shapes[4, 8].batch
    best = {"host": float("inf"), "all": float("inf")}
    for _ in range(5):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        engine._runtime.prover.begin(batch, 128).end("a run")
        best["host"] = min(best["host"], time.perf_counter() - begun)
        torch.cuda.synchronize()
        best["all"] = min(best["all"], time.perf_counter() - begun)
    return {name: seconds * 1e3 for name, seconds in best.items()}


def main(model: str, run_dir: str, out: str, mode: str) -> None:
    import torch

    from vllm_nfp.adapter.engines import worker_of
    from vllm_nfp.adapter.graph_place import CaptureWatch

    late = mode in ("late", "kept")
    with CaptureWatch() as watch:
        llm = engine_of(model, mode)
    worker = worker_of(llm)
    expected = generate(llm)
    if mode == "writes":
        write_in_a_graph()
    grown = count_late_runs(keep=mode == "kept") if late else []
    session = attach(worker, run_dir, LATE if late else SETTINGS, watch.place if late else None)
    result: dict[str, Any] = {"active": session.active, "same": True, "measured": 0}
    if session.active and mode not in ("late", "kept", "writes"):
        with torch.inference_mode():
            result["runs"] = runs_of(session)
            engine = session._started.engine
            result["ms_per_gib"] = milliseconds_per_gib(engine)
            result["proof_ms"] = proof_milliseconds(engine)
    for _ in range(40):
        result["same"] = result["same"] and generate(llm) == expected
        if not session.active:
            break
        result["measured"] = session._started.lead.watcher.outcomes["measured"]
        result["graph_bytes"] = session._started.engine.graph_bytes
        enough = len(grown) >= 12 if late else mode != "writes"
        if enough and result["measured"] >= 8:
            break
    result["grown"] = grown
    result["active_after"] = session.active
    from vllm_nfp.results.snapshot import read_snapshot

    result["reason"] = read_snapshot(Path(run_dir) / "engine-0.json").reason
    if session.active:
        session.disable("the test is over", expected=True)
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:5])
