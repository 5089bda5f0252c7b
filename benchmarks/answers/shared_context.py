"""Claim: sequences of a probe activate as many experts as real ones.

    python -m benchmarks.answers.shared_context --out FILE

Counts distinct experts in each layer of a deep, narrow model with dummy weights on a CPU. Weights
of norms are 1, as vLLM's dummy weights have them since 0.33: with its older ones, which are near 0,
no context changes a hidden state. Three kinds of steps are compared at equal numbers of tokens:

- ``real``: steps that decode, and a step that reads the end of a prompt behind a cached prefix,
  whose tokens are positions of one sequence;
- ``probe``: steps of the probe whose sequences read contexts of real ones;
- ``empty``: steps of the probe before there are enough of these.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.hosts import environment
from vllm_nfp.env_var import ENV_VAR
from vllm_nfp.files import write_whole
from vllm_nfp.principle.counted_routing import uniform_active

LAYERS, EXPERTS, CHOSEN, VOCABULARY = 48, 64, 4, 8192
CONTEXT, POSITIONS, SEQUENCES = 256, 16, 16
PROMPT, BLOCK = CONTEXT + 32, 32
"""A prompt is as long as what a probe's sequence reads."""
ROUNDS = 10
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 1024,
    "intermediate_size": 2048, "moe_intermediate_size": 64, "num_hidden_layers": LAYERS,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "num_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "rope_theta": 1e6, "attention_bias": False,
}  # fmt: skip
SETTINGS = {
    "batch_sizes": [1, SEQUENCES], "contexts": [CONTEXT], "positions": [1, POSITIONS],
    "startup_seconds": 2.0, "overhead_budget": 0.5, "step_share": 1.0,
}  # fmt: skip
ARGUMENTS = {
    "load_format": "dummy", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 32,
    "block_size": BLOCK, "enable_prefix_caching": True, "dtype": "bfloat16", "seed": 0,
    "kv_cache_memory_bytes": 1 << 30,
}  # fmt: skip


class Counts:
    """Distinct experts of steps, by what they are and by layer."""

    def __init__(self) -> None:
        self.kind: tuple[str, int, int] | None = None
        """(kind, sequences, positions) of the step that runs; None: it does not count."""
        self._found: dict[tuple[str, int, int], list[list[int]]] = defaultdict(list)

    def add(self, layer: int, logits: Any) -> None:
        """The router's logits of a step, [tokens, experts]."""
        if self.kind is None or len(logits) != self.kind[1] * self.kind[2]:
            return
        layers = self._found[self.kind]
        if len(layers) <= layer:
            layers.extend([] for _ in range(layer + 1 - len(layers)))
        chosen = logits.float().topk(CHOSEN, dim=1).indices
        layers[layer].append(len(chosen.unique()))

    @contextmanager
    def counting(self, kind: str, sequences: int, positions: int) -> Iterator[None]:
        """Steps of so many tokens inside count as this kind."""
        before, self.kind = self.kind, (kind, sequences, positions)
        try:
            yield
        finally:
            self.kind = before

    def rows(self) -> list[dict[str, Any]]:
        """Mean over layers and steps, and of the first and last layer."""
        return [
            {
                "kind": kind, "sequences": sequences, "positions": positions,
                "experts": round(float(np.mean(layers)), 1), "steps": len(layers[0]),
                "first_layer": round(float(np.mean(layers[0])), 1),
                "last_layer": round(float(np.mean(layers[-1])), 1),
            }
            for (kind, sequences, positions), layers in sorted(self._found.items())
        ]  # fmt: skip


def watch_probes(counts: Counts) -> None:
    """Count the probe's whole steps; its layers that are timed alone do not count."""
    from vllm_nfp.probe.launcher import Launcher

    run_step, run_modules = Launcher._run_step, Launcher._run_modules

    def counted(launcher: Any, prepared: Any, metadata: Any) -> Any:
        batch = prepared.batch
        kind = "probe" if batch.written else "empty"
        with counts.counting(kind, batch.batch_size, batch.positions_per_sequence):
            return run_step(launcher, prepared, metadata)

    def not_counted(launcher: Any, prepared: Any, metadata: Any) -> Any:
        with counts.counting("module", 0, 0):
            return run_modules(launcher, prepared, metadata)

    Launcher._run_step = counted  # type: ignore[assignment,method-assign]
    Launcher._run_modules = not_counted  # type: ignore[assignment,method-assign]


def prepare_model(model: Any, counts: Counts) -> None:
    """Set the weights of norms to 1, and listen to the routers."""
    routers = [m for name, m in model.named_modules() if name.endswith("mlp.gate")]
    assert len(routers) == LAYERS
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.weight.data.fill_(1.0)
    for layer, router in enumerate(routers):
        router.register_forward_hook(
            lambda _, __, out, layer=layer: counts.add(
                layer, out[0] if isinstance(out, tuple) else out
            )
        )


def serve(llm: Any, counts: Counts) -> None:
    """Traffic that decodes, and prompts that end behind a cached prefix."""
    from vllm import SamplingParams

    rng = np.random.default_rng(1)

    def generate(prompts: list[list[int]], tokens: int) -> None:
        params = SamplingParams(
            max_tokens=tokens, ignore_eos=True, temperature=0.0, detokenize=False
        )
        llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)

    def prompt(tokens: int) -> list[int]:
        return [int(i) for i in rng.integers(10, VOCABULARY, tokens)]

    for _ in range(ROUNDS):
        with counts.counting("real", SEQUENCES, 1):
            generate([prompt(PROMPT) for _ in range(SEQUENCES)], 12)
        prefix = prompt(PROMPT)
        generate([prefix], 1)
        with counts.counting("real", 1, POSITIONS):
            generate([prefix + prompt(POSITIONS)], 1)


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(out: Path) -> None:
    """Count; see the module's text."""
    from vllm_nfp.adapter.engines import start_engine, worker_of

    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        os.environ[ENV_VAR] = json.dumps({**SETTINGS, "output_dir": folder, "run_dir": folder})
        watch_probes(counts)
        llm = start_engine(folder, ARGUMENTS)
        prepare_model(worker_of(llm).model_runner.model, counts)
        serve(llm, counts)
    rows = counts.rows()
    for row in rows:
        independent = uniform_active(EXPERTS, CHOSEN, row["sequences"] * row["positions"])
        click.echo(
            f"{row['kind']:6} {row['sequences']:3} x {row['positions']:2}: {row['experts']:5} "
            f"(independent {independent:.1f}), "
            f"{row['steps']} steps"
        )
    held = {"environment": environment.record(), "model": CONFIG, "rows": rows}
    write_whole(out, json.dumps(held))


if __name__ == "__main__":
    main()
