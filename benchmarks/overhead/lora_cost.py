"""Claim: what LoRA adapters add to a step, which a probe leaves out.

    python -m benchmarks.overhead.lora_cost --out FILE.json

One engine serves the shape with two random adapters on all linear layers of attention and FFN. Each
batch size decodes without adapters and with both in turn, several times in random order. The time
of a step is that of its CUDA graph on the device (:mod:`benchmarks.serving.graph_times`): vLLM
captures graphs without adapters and graphs with them (``get_lora_capture_cases``), so that both
replay a FULL one. The LM head and the sampler are not in it.

Beside it stands the time of a step by the host's clock: that of a longer request less that of a
shorter one, over the steps between. With few layers it is the host's, and says nothing about
adapters. A probe runs the base model (docs/models.md), so that it measures the step without
adapters.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.hosts import environment
from benchmarks.serving import shapes
from benchmarks.serving.graph_times import GraphTimes, Replay, steady
from vllm_nfp.adapter.engines import DUMMY_WEIGHTS, WITHOUT_PROBE, start_engine, worker_of
from vllm_nfp.timing.clock import CudaClock

RANK = 16
SHORT, LONG = 8, 72
"""Tokens of the two requests; the first ``SHORT`` replays of one do not count."""
LAST = 1
"""Nor does the last step, whose batch may be ending."""
PROMPT_TOKENS = 256
MAX_MODEL_LEN = 1024
ROUNDS = 5


def write_adapter(folder: Path, seed: int, model: dict[str, Any], layers: int) -> Path:
    """One with random weights, small enough to leave the activations in range."""
    import torch
    from safetensors.torch import save_file

    hidden, width = model["hidden_size"], model["intermediate_size"]
    heads = model["num_attention_heads"]
    head = model.get("head_dim") or hidden // heads
    kv = model["num_key_value_heads"] * head
    sizes = {
        "self_attn.q_proj": (hidden, heads * head), "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv), "self_attn.o_proj": (heads * head, hidden),
        "mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for name, (inputs, outputs) in sizes.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                noise = torch.randn(shape, generator=generator, dtype=torch.float32)
                weights[f"{place}.lora_{part}.weight"] = (0.01 * noise).to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none",
                "target_modules": sorted(name.split(".")[1] for name in sizes),
                "base_model_name_or_path": ""}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@dataclass(frozen=True, slots=True)
class Side:
    """Steps of one batch size, all without adapters or all with them.

    Attributes:
        replays: of FULL graphs that were timed.
        left_out: steps between the first and the last ones that do not count: they ran otherwise,
            or waited for their launch.
        device: median seconds of the replays; None: there was none.
        rounds: the same of each round, for the spread.
        wall: median seconds of a step by the host's clock.
    """

    replays: int
    left_out: int
    device: float | None
    rounds: list[float]
    wall: float


def side_of(
    timed: Sequence[Sequence[Replay]], walls: Sequence[float], tokens: int, adapted: bool
) -> Side:
    """What the rounds say together.

    Args:
        timed: replays of each round's longer request.
        walls: seconds of a step, round by round.
        tokens: of the graph that each step should replay.
    """
    rounds = [steady(replays, tokens, adapted, SHORT, LAST) for replays in timed]
    seconds = [replay.seconds for found in rounds for replay in found]
    # A request's first token comes from its prompt: the others take a step each.
    steps = len(timed) * (LONG - 1 - SHORT - LAST)
    return Side(
        len(seconds),
        max(0, steps - len(seconds)),
        median(seconds) if seconds else None,
        [median(replay.seconds for replay in found) for found in rounds if found],
        median(walls),
    )


def row_of(batch_size: int, plain: Side, adapted: Side) -> dict[str, Any]:
    """What adapters add; ``failed`` in place of the device's ratio where no replay was timed."""
    row: dict[str, Any] = {
        "batch_size": batch_size,
        "plain": asdict(plain),
        "adapted": asdict(adapted),
        "wall_ratio": adapted.wall / plain.wall,
    }
    if plain.device is None or adapted.device is None:
        sides = (("without", plain), ("with", adapted))
        without = " and ".join(name for name, side in sides if side.device is None)
        return {**row, "failed": f"no replay of a FULL graph was timed {without} adapters"}
    return {**row, "ratio": adapted.device / plain.device}


def told(row: dict[str, Any]) -> str:
    """A row as one line."""
    wall = f"{row['wall_ratio']:.3f} by the host's clock"
    if "failed" in row:
        return f"B={row['batch_size']}: {row['failed']}; {wall}"
    plain, adapted = row["plain"], row["adapted"]
    return (
        f"B={row['batch_size']}: {1e3 * plain['device']:.3f} ms without, "
        f"{1e3 * adapted['device']:.3f} ms with adapters, ratio {row['ratio']:.3f} "
        f"({plain['replays']} and {adapted['replays']} replays); {wall}"
    )


class Bench:
    """An engine with adapters whose steps are timed.

    Args:
        llm: made by :func:`vllm_nfp.adapter.engines.start_engine`.
        loras: requests for the adapters.
    """

    def __init__(self, llm: Any, loras: Sequence[Any], times: GraphTimes) -> None:
        self._llm, self._loras, self._times = llm, loras, times

    def row(self, batch_size: int) -> dict[str, Any]:
        """Both sides in turn."""
        timed: dict[bool, list[list[Replay]]] = {False: [], True: []}
        walls: dict[bool, list[float]] = {False: [], True: []}
        order = [False, True] * ROUNDS
        random.Random(batch_size).shuffle(order)
        for adapted in (False, True, *order):  # the first two warm up
            walls[adapted].append(self._wall(batch_size, adapted))
            timed[adapted].append(self._device(batch_size, adapted))
        plain, with_adapters = (
            side_of(timed[adapted][1:], walls[adapted][1:], batch_size, adapted)
            for adapted in (False, True)
        )
        return row_of(batch_size, plain, with_adapters)

    def _wall(self, batch_size: int, adapted: bool) -> float:
        """Seconds of a step by the host's clock, with nothing else timed."""
        long, short = (self._seconds(batch_size, adapted, tokens) for tokens in (LONG, SHORT))
        return (long - short) / (LONG - SHORT)

    def _device(self, batch_size: int, adapted: bool) -> list[Replay]:
        """Replays of the longer request."""
        import torch

        self._times.on = True
        try:
            self._seconds(batch_size, adapted, LONG)
        finally:
            self._times.on = False
        torch.cuda.synchronize()
        return self._times.take()

    def _seconds(self, batch_size: int, adapted: bool, tokens: int) -> float:
        """Of so many tokens for each sequence."""
        from vllm import SamplingParams

        prompts = [
            {"prompt_token_ids": [(7 * i + j) % 1000 + 5 for j in range(PROMPT_TOKENS)]}
            for i in range(batch_size)
        ]
        loras = self._loras
        given = [loras[i % len(loras)] for i in range(batch_size)] if adapted else None
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False)
        begun = time.perf_counter()
        self._llm.generate(prompts, params, lora_request=given, use_tqdm=False)
        return time.perf_counter() - begun


def engine_arguments(shape: str, layers: int, batches: Sequence[int]) -> dict[str, Any]:
    """Graphs of these batch sizes alone, and a KV cache of known size, for a short start."""
    tokens = (max(batches) + 1) * MAX_MODEL_LEN  # one sequence more than needed
    return {
        **DUMMY_WEIGHTS, "max_model_len": MAX_MODEL_LEN, "max_num_seqs": max(batches),
        "enable_lora": True, "max_loras": 2, "max_lora_rank": RANK, "enable_prefix_caching": False,
        "kv_cache_memory_bytes": int(shapes.kv_gib(shape, layers, tokens) * (1 << 30)),
        "compilation_config": {"cudagraph_capture_sizes": sorted(batches)},
    }  # fmt: skip


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--shape", default="llama-3.1-8b", type=click.Choice(sorted(shapes.SHAPES)))
@click.option("--layers", default=8)
@click.option("--batch-sizes", default="1,8,32")
def main(out: Path, shape: str, layers: int, batch_sizes: str) -> None:
    """Time steps with and without adapters."""
    os.environ.update(WITHOUT_PROBE)
    from vllm.lora.request import LoRARequest

    batches = [int(text) for text in batch_sizes.split(",")]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = shapes.shared_model(shape, layers)
        model = json.loads((folder / "config.json").read_text())
        adapters = [write_adapter(Path(name) / f"a{i}", i, model, layers) for i in (1, 2)]
        llm = start_engine(folder, engine_arguments(shape, layers, batches))
        manager = getattr(worker_of(llm).model_runner, "cudagraph_manager", None)
        if manager is None:
            raise click.ClickException("the runner has no graph manager: this needs vLLM's V2 one")
        loras = [LoRARequest(path.name, i + 1, str(path)) for i, path in enumerate(adapters)]
        about = {"shape": shape, "layers": layers, "rank": RANK, "record": environment.record()}
        bench, rows = Bench(llm, loras, GraphTimes(manager, CudaClock())), []
        for batch_size in batches:
            rows.append(bench.row(batch_size))
            print(told(rows[-1]), flush=True)
            # What is known stays if the host's time ends here.
            out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    if failed := [row["batch_size"] for row in rows if "failed" in row]:
        raise click.ClickException(f"no FULL graph was timed at batch sizes {failed}")


if __name__ == "__main__":
    main()
