"""The facts at the page's end: environment, probe settings and the run, as names and values."""

from __future__ import annotations

from vllm_nfp.results.profile import Profile
from vllm_nfp.text import duration
from vllm_nfp.types import ExpertRouting

SHOWN_TOKENS = (8, 64, 512)
Facts = tuple[tuple[str, str], ...]


def environment_facts(profile: Profile) -> Facts:
    """Device, versions, model and server limits; what the profile lacks is left out."""
    environment, model = profile.environment, profile.model
    device = environment.device
    memory = None if device.memory_bytes is None else f"{device.memory_bytes / (1 << 30):.1f} GiB"
    attention = f"{model.num_attention_heads} heads, {model.num_key_value_heads} KV heads"
    rows: tuple[tuple[str, object], ...] = (
        ("Device", device.name),
        ("Device memory", memory),
        ("SMs", device.multiprocessors),
        ("Driver", device.driver),
        ("CUDA", environment.cuda),
        ("vLLM", environment.vllm),
        ("torch", environment.torch),
        ("Python", environment.python),
        ("vllm-nfp", environment.vllm_nfp),
        ("Model", model.name),
        ("Architecture", model.architecture),
        ("Layers", model.num_layers),
        ("Hidden size", model.hidden_size),
        ("Intermediate size", model.intermediate_size),
        ("Attention", None if model.num_attention_heads is None else attention),
        ("Head size", model.head_dim),
        ("Vocabulary", model.vocab_size),
        ("Experts", model.num_experts),
        ("Experts per token", model.experts_per_token),
        ("Data type", environment.dtype),
        ("Quantization", environment.quantization),
        ("KV cache data type", environment.kv_cache_dtype),
        ("Attention backends", ", ".join(environment.attention_backends)),
        ("CUDA graphs", environment.cudagraph_mode),
        ("Eager mode", "yes" if environment.enforce_eager else None),
        ("Tensor parallel size", environment.tensor_parallel_size),
        ("Maximum context", environment.max_model_len),
        ("Maximum sequences", environment.max_num_seqs),
        ("Maximum tokens per step", environment.max_num_batched_tokens),
        ("KV blocks", environment.num_kv_blocks),
        ("KV block size", environment.block_size),
    )
    return tuple((name, str(value)) for name, value in rows if value not in (None, "", 0))


def timed_layers(profile: Profile) -> str:
    """What of the model was timed, for the page's subtitle; empty if the profile does not say."""
    layers = profile.model.num_layers
    if not layers:
        return ""
    each = profile.probe.sampled_layers
    alone = f"{each} of each kind timed alone" if each else "each timed alone"
    cut = profile.model.cut_layers
    of = f"{layers} of the model's {cut[1]}" if cut else str(layers)
    return f"whole step of {of} layers, {alone}"


def run_facts(profile: Profile) -> Facts:
    """State, pairs and cost of the run, and the cells that were left out."""
    run = profile.run
    on_gpu = profile.environment.device.type != "cpu"
    time = "GPU time" if on_gpu else "the serving time"
    graphs = f"{run.graph_bytes / (1 << 20):.0f} MiB"
    pairs = ", ".join(f"{count} {outcome}" for outcome, count in run.probes.items() if count)
    rows = [
        ("State", str(run.state) + (f": {run.reason}" if run.reason else "")),
        ("Model runner", run.runner),
        ("Probe pairs", pairs),
        ("Missing pairs", str(run.missing_pairs or "") if profile.probe.wanted_samples else ""),
        ("Probe time while serving", duration(run.probe_seconds) if run.probe_seconds else ""),
        (f"Fraction of {time}", f"{run.overhead_ratio:.2%}" if run.overhead_ratio else ""),
        ("Added startup time", duration(run.startup_seconds) if run.startup_seconds else ""),
        ("Memory of the probe's CUDA graphs", graphs if on_gpu else ""),
        ("Experts that a step reads", _experts_read(profile.experts)),
        *((f"Not probed: {cell}", reason) for cell, reason in run.skipped_cells.items()),
    ]
    return tuple((name, value) for name, value in rows if value)


def _experts_read(found: ExpertRouting | None) -> str:
    """Distinct experts of a few widths of a step, beside those of uniform routing."""
    if found is None:
        return ""
    shown = [row for row in found.active if row.tokens in SHOWN_TOKENS]
    counts = ", ".join(
        f"{row.experts:.1f} at {row.tokens} tokens (uniform: {row.uniform:.1f})" for row in shown
    )
    return (
        f"of {found.num_experts} in a layer: {counts}; counted over {found.tokens} tokens of "
        f"{found.steps} real steps without a CUDA graph; shares fall about like rank to the "
        f"-{found.skew:g}"
    )


def settings_facts(profile: Profile) -> Facts:
    """The table and the sampling of the probe."""
    probe = profile.probe
    return (
        ("Batch sizes", ", ".join(map(str, probe.batch_sizes))),
        ("Contexts", ", ".join(map(str, probe.contexts))),
        ("Positions", ", ".join(map(str, probe.positions))),
        ("Tolerances", ", ".join(f"{epsilon:g}" for epsilon in probe.epsilons)),
        ("Pairs wanted of each point", str(probe.wanted_samples or "chosen by value")),
        ("Pairs kept of each point", str(probe.max_samples)),
        ("Timed layers of each kind", str(probe.sampled_layers or "all")),
        ("Overhead budget", f"{probe.overhead_budget:g}"),
        ("Seed", str(probe.seed)),
    )
