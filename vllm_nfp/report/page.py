"""From a profile to the page: what each section shows, and the template that lays it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllm_nfp import __version__
from vllm_nfp.crossing import usual_epsilon
from vllm_nfp.draft import ScheduleRow, sources
from vllm_nfp.draft.recommend import recommend
from vllm_nfp.draft.sources import SourceError
from vllm_nfp.files import write_whole
from vllm_nfp.results.profile import Profile
from vllm_nfp.text import duration, harmless
from vllm_nfp.types import Boundary, Cell, LayerLatency, Module, Prediction

ACCEPTANCES = (0.5, 0.7, 0.9)
"""Chances of a draft to be accepted that the table of draft lengths is made for."""
MOST_LAYER_CELLS = 9
"""Cells of a module whose layers are shown; the profile holds them all."""
HOTTEST_RATIO = 2.0
"""Ratio at which a layer's cell in the heat map has its full colour."""

MODULE_NAMES = {
    "model": "Whole step",
    "attention": "Attention",
    "dense_ffn": "Dense FFN",
    "moe_ffn": "MoE FFN",
    "communication": "Communication",
}
MODULE_TEXTS = {
    "model": "The decode step as the server launches it, with the LM head over all positions.",
    "attention": "The attention operator with the KV cache, without its projections; one layer.",
    "dense_ffn": "The feed-forward block of one layer.",
    "moe_ffn": "Router, experts and shared experts of one layer.",
    "communication": "The transfers between ranks in one layer; no part of the other modules.",
}


class ReportError(RuntimeError):
    """The report cannot be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class NfpRow:
    """One line of the table of boundaries."""

    batch_size: int
    context: int
    baseline: str
    """t(1) with its unit."""
    boundary: Boundary
    prediction: Prediction | None


@dataclass(frozen=True, slots=True)
class Section:
    """One module."""

    name: str
    title: str
    text: str
    plots: tuple[tuple[str, str], ...]
    """(caption, SVG)"""
    rows: tuple[NfpRow, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """The answer in short for one batch size of the whole step."""

    batch_size: int
    text: str
    contexts: str


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One cell of a heat map."""

    text: str
    percent: int
    """Strength of the colour."""
    free: bool


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Layers against positions, of one module in one cell."""

    title: str
    positions: tuple[int, ...]
    rows: tuple[tuple[int, str, tuple[HeatCell | None, ...]], ...]
    """(layer, t(1) with its unit, a cell for each position count beyond 1)"""


@dataclass(frozen=True, slots=True)
class DraftRow:
    """The best draft lengths of one batch size and context, one for each acceptance."""

    batch_size: int
    context: int
    choices: tuple[ScheduleRow, ...]
    """As ``recommend`` gives them for each of :data:`ACCEPTANCES`."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """The table of draft lengths."""

    rows: tuple[DraftRow, ...]
    reason: str
    """Why there is none; empty if there is one."""

    def any_with(self, basis: str) -> bool:
        """Whether a row rests on this basis, see :class:`ScheduleRow`."""
        return any(choice.basis == basis for row in self.rows for choice in row.choices)


def choose_epsilon(profile: Profile, epsilon: float | None) -> float:
    """The tolerance that the report is drawn for: that asked for, else the usual one.

    Raises:
        ReportError: if the profile has no boundary at it.
    """
    known = profile.epsilons
    if not known:
        raise ReportError(
            "the profile holds no boundary: its run ended before any point had enough samples"
        )
    if epsilon is None:
        return usual_epsilon(known)
    if epsilon not in known:
        measured = ", ".join(f"{value:g}" for value in known)
        raise ReportError(f"epsilon {epsilon:g} is not in the profile; it has {measured}")
    return epsilon


def render(profile: Profile, epsilon: float | None = None) -> str:
    """The report as the text of one HTML file.

    Args:
        epsilon: tolerance to draw; None takes 0.1, or the measured one next to it.

    Raises:
        ReportError: if the profile has no boundary there, or a library is missing.
    """
    epsilon = choose_epsilon(profile, epsilon)
    template = _template()
    text: str = template.render(
        profile=profile,
        epsilon=epsilon,
        version=__version__,
        date=datetime.fromtimestamp(profile.environment.date_unix_seconds, UTC),
        tiles=_tiles(profile, epsilon),
        sections=_sections(profile, epsilon),
        drafts=_drafts(profile),
        acceptances=ACCEPTANCES,
        heat_maps=_heat_maps(profile, epsilon),
        curves=profile.curves_by_cell(),
        module_names=MODULE_NAMES,
        environment=_environment(profile),
        run=_run(profile),
        settings=_settings(profile),
        predicted=bool(profile.predictions),
    )
    return text


def write_report(path: Path, profile: Profile, epsilon: float | None = None) -> None:
    """Write the report; an older file is replaced whole or left as it was.

    Raises:
        ReportError: see :func:`render`.
        OSError: if the file cannot be written.
    """
    write_whole(path, render(profile, epsilon))


def _template() -> Any:
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ReportError(
            f"a report needs {error.name}, which is not installed: pip install 'vllm-nfp[report]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vllm_nfp.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    environment.filters["duration"] = duration
    return environment.get_template("report.html.j2")


def _plain(value: object) -> object:
    """A value for the page; escaping alone lets control characters through."""
    # Markup is our own; what others wrote into a profile is text.
    return harmless(value) if type(value) is str else value


def _boundaries(profile: Profile, epsilon: float) -> dict[Cell, Boundary]:
    rows = (row for row in profile.boundaries if row.epsilon == epsilon)
    return {row.cell: row for row in rows}


def _predictions(profile: Profile, epsilon: float) -> dict[Cell, Prediction]:
    rows = (row for row in profile.predictions if row.epsilon == epsilon)
    return {row.cell: row for row in rows}


def _tiles(profile: Profile, epsilon: float) -> tuple[Tile, ...]:
    found: dict[int, list[Boundary]] = {}
    for (module, batch_size, _), row in sorted(_boundaries(profile, epsilon).items()):
        if module == "model":
            found.setdefault(batch_size, []).append(row)
    return tuple(_tile(batch_size, rows) for batch_size, rows in sorted(found.items()))


def _tile(batch_size: int, rows: Sequence[Boundary]) -> Tile:
    low = min(rows, key=lambda row: row.positions)
    high = max(rows, key=lambda row: row.positions)
    text = _nfp_short(low)
    if low.positions != high.positions:
        text = f"{low.positions} to {_nfp_short(high)}"
    contexts = sorted(row.context for row in rows)
    span = f"L = {contexts[0]}" if len(contexts) == 1 else f"L = {contexts[0]} to {contexts[-1]}"
    return Tile(batch_size, text, span)


def _nfp_short(row: Boundary) -> str:
    return f"{row.positions}{'+' if row.at_limit else ''}"


def _sections(profile: Profile, epsilon: float) -> tuple[Section, ...]:
    present = {module for module, _, _ in profile.cells}
    return tuple(_section(profile, m, epsilon) for m in Module if m in present)


def _section(profile: Profile, module: str, epsilon: float) -> Section:
    from markupsafe import Markup

    from vllm_nfp.report.figures import Line, plot_cells

    curves, boundaries = profile.curves_by_cell(), _boundaries(profile, epsilon)
    predictions = _predictions(profile, epsilon)
    cells = [key for key in curves if key[0] == module]
    plots = []
    for context in sorted({key[2] for key in cells}):
        keys = [key for key in cells if key[2] == context]
        lines = [Line(k[1], curves[k], boundaries.get(k), predictions.get(k)) for k in keys]
        title = f"{MODULE_NAMES[module]}: time of N positions over one, context {context} tokens"
        svg = plot_cells(lines, epsilon, title, f"plot-{module.replace('_', '-')}-{context}")
        # Of our own making, from numbers alone.
        plots.append((f"L = {context}", Markup(svg)))
    rows = tuple(
        NfpRow(
            key[1], key[2], duration(curves[key][0].median_seconds), boundaries[key],
            predictions.get(key),
        )
        for key in cells
        if key in boundaries
    )  # fmt: skip
    return Section(module, MODULE_NAMES[module], MODULE_TEXTS[module], tuple(plots), rows)


def _drafts(profile: Profile) -> Drafts:
    """What ``recommend`` gives for each measured batch size at each measured context."""
    if not any(row.module == "model" for row in profile.curves):
        return Drafts((), "The profile holds no times of the whole step.")
    try:
        source = sources.from_profile(profile)
        found = [recommend(source, acceptance) for acceptance in ACCEPTANCES]
    except SourceError as error:
        return Drafts((), f"No draft lengths: {error}.")
    measured = {curve.batch_size for curve in source.curves}
    return Drafts(
        tuple(
            DraftRow(choices[0].batch_size_first, choices[0].context, choices)
            for choices in zip(*(one.rows for one in found), strict=True)
            if choices[0].batch_size_first in measured
        ),
        "",
    )


def _heat_maps(profile: Profile, epsilon: float) -> tuple[tuple[str, tuple[HeatMap, ...]], ...]:
    by_cell: dict[Cell, list[LayerLatency]] = {}
    for row in profile.layer_times:
        by_cell.setdefault(row.cell, []).append(row)
    result = []
    for module in Module:
        keys = sorted((k for k in by_cell if k[0] == module), key=lambda k: (k[2], k[1]))
        shown = keys[:: max(1, -(-len(keys) // MOST_LAYER_CELLS))]
        maps = tuple(_heat_map(key, by_cell[key], epsilon) for key in shown)
        if maps:
            result.append((MODULE_NAMES[module], maps))
    return tuple(result)


def _heat_map(key: Cell, rows: Sequence[LayerLatency], epsilon: float) -> HeatMap:
    times = {(row.layer, row.positions): row.median_seconds for row in rows}
    positions = tuple(sorted({row.positions for row in rows} - {1}))
    layers = sorted({row.layer for row in rows})
    return HeatMap(
        f"B = {key[1]}, L = {key[2]}",
        positions,
        tuple(
            (
                layer,
                duration(times[layer, 1]) if (layer, 1) in times else "-",
                tuple(
                    _heat_cell(times.get((layer, n)), times.get((layer, 1)), epsilon)
                    for n in positions
                ),
            )
            for layer in layers
        ),
    )


def _heat_cell(many: float | None, one: float | None, epsilon: float) -> HeatCell | None:
    if many is None or one is None:
        return None
    ratio = many / one
    share = min(1.0, max(0.0, (ratio - 1.0) / (HOTTEST_RATIO - 1.0)))
    return HeatCell(f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}", round(85 * share),
                    ratio <= 1.0 + epsilon)  # fmt: skip


def _environment(profile: Profile) -> tuple[tuple[str, str], ...]:
    environment, model = profile.environment, profile.model
    device = environment.device
    memory = None if device.memory_bytes is None else f"{device.memory_bytes / (1 << 30):.1f} GiB"
    attention = f"{model.num_attention_heads} heads, {model.num_key_value_heads} KV heads"
    rows: tuple[tuple[str, object], ...] = (
        ("Device", device.name),
        ("Device memory", memory),
        ("Multiprocessors", device.multiprocessors),
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
        ("Type", environment.dtype),
        ("Quantization", environment.quantization),
        ("KV cache type", environment.kv_cache_dtype),
        ("Attention backends", ", ".join(environment.attention_backends)),
        ("CUDA graphs", environment.cudagraph_mode),
        ("Eager mode", "yes" if environment.enforce_eager else None),
        ("Tensor parallel size", environment.tensor_parallel_size),
        ("Longest context", environment.max_model_len),
        ("Most sequences", environment.max_num_seqs),
        ("Most tokens in a step", environment.max_num_batched_tokens),
        ("KV blocks", environment.num_kv_blocks),
        ("KV block size", environment.block_size),
    )
    return tuple((name, str(value)) for name, value in rows if value not in (None, "", 0))


def _run(profile: Profile) -> tuple[tuple[str, str], ...]:
    run = profile.run
    pairs = ", ".join(f"{count} {outcome}" for outcome, count in run.probes.items() if count)
    rows = [
        ("State", str(run.state) + (f": {run.reason}" if run.reason else "")),
        ("Model runner", run.runner),
        ("Pairs of probes", pairs),
        ("Pairs missing", str(run.missing_pairs or "")),
        ("Probe time while serving", duration(run.probe_seconds) if run.probe_seconds else ""),
        ("Share of GPU time", f"{run.overhead_ratio:.2%}" if run.overhead_ratio else ""),
        ("Time added to the start", duration(run.startup_seconds) if run.startup_seconds else ""),
        ("Memory of the probe's CUDA graphs", f"{run.graph_bytes / (1 << 20):.0f} MiB"),
        *((f"Left out: {cell}", reason) for cell, reason in run.skipped_cells.items()),
    ]
    return tuple((name, value) for name, value in rows if value)


def _settings(profile: Profile) -> tuple[tuple[str, str], ...]:
    probe = profile.probe
    return (
        ("Batch sizes", ", ".join(map(str, probe.batch_sizes))),
        ("Contexts", ", ".join(map(str, probe.contexts))),
        ("Positions", ", ".join(map(str, probe.positions))),
        ("Tolerances", ", ".join(f"{epsilon:g}" for epsilon in probe.epsilons)),
        ("Pairs for each point", f"{probe.min_samples} to {probe.max_samples}"),
        ("Layers timed of each kind", str(probe.sampled_layers or "all")),
        ("Overhead budget", f"{probe.overhead_budget:g}"),
        ("Seed", str(probe.seed)),
    )
