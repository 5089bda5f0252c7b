"""Step times from the /metrics of a running server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_nfp.draft.server_drafts import COUNTERS, DRAFTS, live_drafting, settled_length
from vllm_nfp.draft.server_ratios import Ratio, curve_of, ratios_of
from vllm_nfp.draft.server_steps import SEQUENCE_STEPS
from vllm_nfp.draft.sources import LiveTraffic, Source, SourceError, beyond_graphs
from vllm_nfp.results import fetching, scrape
from vllm_nfp.results.scrape import count
from vllm_nfp.strict_json import parse

if TYPE_CHECKING:
    from vllm_nfp.draft.curve import StepCurve
    from vllm_nfp.results.scrape import Samples

STEP_RATIO = "vllm_nfp_step_time_ratio"
LIVE_RATIO = "vllm_nfp_live_step_time_ratio"
"""The same at the real batch size and context of the last step."""
LIVE_SECONDS = "vllm_nfp_live_step_seconds"
"""t(1) there."""
LIVE_BATCH_SIZE, LIVE_CONTEXT = "vllm_nfp_live_batch_size", "vllm_nfp_live_context"
SAME_STEP = 1.25
"""Two medians of the same step on the same device differ by less than this factor."""
VERSION_LIMIT_SECONDS = 5.0
MOST_VERSION_BYTES = 1 << 16


def read_metrics(url: str) -> Samples:
    """The metrics of a server that are needed here.

    Raises:
        ScrapeError: if the server does not answer, or with something else than metrics.
    """
    end = fetching.deadline()
    text = fetching.fetch(url)
    try:
        return scrape.find_samples(text, (*COUNTERS, SEQUENCE_STEPS), end)
    except fetching.ScrapeError as error:
        raise fetching.ScrapeError(f"{url} cannot be used: {error}") from None


def step_times(url: str, samples: Samples) -> Source:
    """The step times of a server with the probe.

    Raises:
        SourceError: if it has no probe, or has measured no step yet.
    """
    if "vllm_nfp_state" not in samples:
        raise SourceError(f"{url} has no NFP probe: start the server with --nfp-probe")
    return from_samples(samples, url, server_version(url))


def server_version(url: str) -> str | None:
    """vLLM's version, from the server's /version; None if it does not answer that."""
    base = url.rstrip("/").removesuffix("/metrics")
    try:
        answer = parse(fetching.get(f"{base}/version", VERSION_LIMIT_SECONDS, MOST_VERSION_BYTES))
        version = answer["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return version[:80] if isinstance(version, str) else None


def engines_of(samples: Samples) -> int:
    """Engines of the server that have a probe: more than one under data parallelism."""
    return len({labels.get("engine") for labels, _ in samples.get("vllm_nfp_state", ())})


def _curves(samples: Samples) -> tuple[tuple[StepCurve, ...], list[str]]:
    """The whole step's curves, and the names of the models that they are of."""
    seconds: dict[tuple[int, int], dict[int, float]] = {}
    models: set[str] = set()
    without, nfp = _without_graph(samples), _boundaries(samples)
    ratios = ratios_of(samples, STEP_RATIO, _cell)
    for labels, value in samples.get("vllm_nfp_module_latency_seconds", ()):
        if labels["module"] != "model":
            continue
        models.add(labels["model_name"])
        times = seconds.setdefault(_cell(labels), {})
        positions = count(labels["positions"])
        times[positions] = max(value, times.get(positions, 0.0))
    curves = tuple(
        replace(
            curve_of(cell, times, ratios.get(cell, {})),
            without_graph_from=without.get(cell),
            boundaries=nfp.get(cell, ()),
        )
        for cell, times in sorted(seconds.items())
        if 1 in times
    )
    return curves, sorted(models)


def from_samples(samples: Samples, name: str, vllm: str | None = None) -> Source:
    """The step times on a server's /metrics; of several engines the slowest at each point.

    Raises:
        SourceError: if the server has measured no step yet.
    """
    try:
        curves, models = _curves(samples)
        live = _live_traffic(samples)
    except KeyError as error:
        raise SourceError(
            f"the step times of {name} lack the label {error.args[0]!r:.80}: does the server "
            f"run another version of vllm-nfp?"
        ) from None
    except ValueError as error:
        raise SourceError(
            f"the step times of {name} cannot be used: {error}; does the server run this "
            f"version of vllm-nfp?"
        ) from None
    if not curves:
        raise SourceError(
            f"{name} has measured no step yet: send it requests until vllm-nfp table shows "
            f"estimates"
        )
    return Source(
        "server",
        name,
        ", ".join(models),
        curves,
        vllm=vllm,
        drafting=live_drafting(samples),
        live=live,
        whole=True,
    )


def _live_traffic(samples: Samples) -> tuple[LiveTraffic, ...]:
    """At the real batch size and context of the last step of each engine that tells them."""
    sizes, contexts, ones = (
        {_engine(labels): value for labels, value in samples.get(name, ())}
        for name in (LIVE_BATCH_SIZE, LIVE_CONTEXT, LIVE_SECONDS)
    )
    found = []
    for engine, ratios in sorted(ratios_of(samples, LIVE_RATIO, _engine).items()):
        if engine in sizes and engine in contexts and engine in ones:
            cell = int(sizes[engine]), int(contexts[engine])
            of = {1: Ratio(1.0), **ratios}
            curve = curve_of(cell, {n: ones[engine] * r.value for n, r in of.items()}, ratios)
            found.append(LiveTraffic(curve, settled_length(samples, engine or None, *cell)))
    return tuple(found)


def _cell(labels: Mapping[str, str]) -> tuple[int, int]:
    return count(labels["batch_size"]), count(labels["context"])


def _engine(labels: Mapping[str, str]) -> str:
    return labels.get("engine", "")


def _boundaries(
    samples: Samples,
) -> dict[tuple[int, int], tuple[tuple[float, int, bool], ...]]:
    """The whole step's NFP by (batch size, context); of several engines the smallest."""
    limits = {
        _line(labels): bool(value)
        for labels, value in samples.get("vllm_nfp_positions_at_limit", ())
        if labels["module"] == "model"
    }
    found: dict[tuple[int, int], dict[float, tuple[int, bool]]] = {}
    for labels, value in samples.get("vllm_nfp_positions", ()):
        if labels["module"] == "model":
            line = _line(labels)
            cell = found.setdefault((line[1], line[2]), {})
            nfp = (int(value), limits.get(line, False))
            cell[line[3]] = min(nfp, cell.get(line[3], nfp))
    return {
        cell: tuple((epsilon, *nfp) for epsilon, nfp in sorted(by_epsilon.items()))
        for cell, by_epsilon in found.items()
    }


def _line(labels: Mapping[str, str]) -> tuple[str, int, int, float]:
    """Engine, batch size, context and epsilon of a boundary."""
    return _engine(labels), *_cell(labels), float(labels["epsilon"])


def _without_graph(samples: Samples) -> dict[tuple[int, int], int]:
    """For each (batch size, context) whose N = 1 has a CUDA graph, the smallest N without one."""
    ways: dict[tuple[int, int], dict[int, str]] = {}
    for labels, _ in samples.get("vllm_nfp_execution_info", ()):
        if labels["module"] == "model":
            cell = ways.setdefault(_cell(labels), {})
            cell[count(labels["positions"])] = labels["execution"]
    beyond = {key: beyond_graphs(by_count) for key, by_count in ways.items()}
    return {key: min(counts) for key, counts in beyond.items() if counts}


def differences(source: Source, samples: Samples) -> tuple[str, ...]:
    """Why the source's step times may differ from those of the server with these metrics.

    The GPU's name is not on /metrics. Where the server's own probe has timed a step that the source
    has too, the two times are compared.
    """
    found = []
    served = sorted(
        {
            labels["model_name"]
            for name in (DRAFTS, "vllm_nfp_state")
            for labels, _ in samples.get(name, ())
            if "model_name" in labels
        }
    )
    if served and source.model not in served:
        found.append(
            f"{source.name} is of the model {source.model}, but the server serves "
            f"{', '.join(served)}: these draft lengths may not fit it"
        )
    try:
        live = from_samples(samples, "the server")
    except SourceError:
        return tuple(found)
    theirs = {(c.batch_size, c.context): c.seconds_at_one for c in live.curves}
    for curve in source.curves:
        other = theirs.get((curve.batch_size, curve.context))
        if other is not None and not 1 / SAME_STEP < other / curve.seconds_at_one < SAME_STEP:
            found.append(
                f"a step at B={curve.batch_size} L={curve.context} takes "
                f"{curve.seconds_at_one * 1e3:.3g} ms in {source.name} and {other * 1e3:.3g} ms on "
                f"the server, so the GPU, vLLM or model differs: use the server's URL as the source"
            )
            break
    return tuple(found)
