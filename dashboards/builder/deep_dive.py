"""The dashboard "NFP deep dive": curves, intervals, layers and how the steps ran."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from dashboards.builder import grafana as g
from dashboards.builder.grafana import Frame, Query

UID = "nfp-deep-dive"
TITLE = "NFP deep dive"

_SHAPE = ('batch_size="$batch_size"', 'context="$context"')
_TOLERANCE = 'epsilon="$epsilon"'
_CONTEXT_FREE = f'module=~"{"|".join(g.CONTEXT_FREE)}"'
_POINT = (*_SHAPE, 'module="$module"', _TOLERANCE)


def deep_dive() -> models.Dashboard:
    """The dashboard, ready to be written as JSON."""
    page = g.page(
        UID,
        TITLE,
        "What determines the boundary: time by positions, intervals, layers, and how steps were "
        "launched.",
        others={"NFP overview": "nfp-overview", "NFP fleet": "nfp-fleet"},
    )
    page.with_variable(
        g.batch_size_variable(
            "Batch size",
            "Reported batch size in sequences, a power of two by default.",
            many=False,
            first="8",
        )
    )
    page.with_variable(
        g.variable(
            "module",
            "Module",
            "Part of the model; model is the whole step.",
            f"label_values({g.metric('vllm_nfp_positions')}, module)",
            first="model",
        )
    )
    _curves(page)
    _intervals(page)
    _layers(page)
    _experts(page)
    _samples(page)
    return g.finished(page)


def _curves(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "t(N) at batch size $batch_size and context $context",
        g.curves(
            Frame(
                "Time by positions",
                "Median time of each module at N positions per sequence (mean of its timed layers;"
                " the whole step for model). FFNs and communication do not depend on the context.",
                "Look for stairs. Within a stair extra positions are free, so choose a draft "
                "length that ends just before a step up.",
                12,
                10,
            ),
            {module: _time(module) for module in g.MODULES},
            x="positions",
            unit="s",
            colors=g.MODULE_COLORS,
        ),
        g.curves(
            Frame(
                "Time over that of one position",
                "The same curves, divided by their time at one position, and the 95 % interval of "
                "the whole step's. A module's NFP is the last N before its curve rises above the "
                "dashed line, 1 + tolerance; the estimate may differ by one point.",
                "The module that crosses first limits the step.",
                12,
                10,
            ),
            {
                **{module: _ratio(module) for module in g.MODULES},
                "limit": f"0 * {_time('model')} + 1 + $epsilon",
                "model, lower": _end("min", "lower"),
                "model, upper": _end("max", "upper"),
            },
            x="positions",
            unit="none",
            colors={
                **g.MODULE_COLORS,
                "limit": g.VERMILLION,
                "model, lower": g.GREY,
                "model, upper": g.GREY,
            },
            dashed=("limit", "model, lower", "model, upper"),
            axis="t(N) / t(1)",
        ),
    )


def _times(module: str, *more: str) -> str:
    shape = _SHAPE[:1] if module in g.CONTEXT_FREE else _SHAPE
    return g.metric("vllm_nfp_module_latency_seconds", *shape, f'module="{module}"', *more)


def _time(module: str) -> str:
    return f"max by (positions) ({_times(module)})"


def _ratio(module: str) -> str:
    one = _times(module, 'positions="1"')
    return f"{_time(module)} / on () group_left () max({one})"


def _end(fold: str, which: str) -> str:
    """One end of the interval of the whole step's ratio."""
    return f"{fold} by (positions) ({g.metric(f'vllm_nfp_step_time_ratio_{which}', *_SHAPE)})"


def _intervals(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "Intervals",
        g.series(
            Frame(
                "Estimate and 95 % interval of $module",
                "NFP of the chosen module, batch size and context over time, with its interval "
                "(the widest of several servers). Medians of the last 5 minutes: a boundary that "
                "has not moved draws a flat line.",
                "Wide band: little is measured near this point. Wait, send traffic, or raise "
                "--nfp-overhead-budget. A band that moves as a whole is a real change.",
                10,
            ),
            *(
                Query(g.steady(f"{fold}({g.metric(name, *_POINT)})"), legend)
                for name, fold, legend in (
                    ("vllm_nfp_positions_upper", "max", "upper"),
                    ("vllm_nfp_positions_lower", "min", "lower"),
                    ("vllm_nfp_positions", "min", "estimate"),
                )
            ),
            colors={"upper": g.SKY, "estimate": g.BLUE, "lower": g.SKY},
            band=("upper", "lower"),
            steps=True,
            axis="positions",
        ),
        g.listing(
            Frame(
                "All estimates at the tolerance",
                "Every module, batch size and context: lower end, estimate, upper end, and what "
                "the estimate rests on. at limit = 1: the largest N of the grid is still free, so "
                "NFP is this or more. largest free: the largest N within the tolerance, even if a "
                "smaller N is not.",
                "At the limit: raise --nfp-max-positions to find the boundary. If largest free is "
                "above NFP, that N is worth running (for example 8, where 6 is not free).",
                14,
            ),
            {
                name: _by_cell(metric)
                for name, metric in (
                    ("lower", "vllm_nfp_positions_lower"),
                    ("NFP", "vllm_nfp_positions"),
                    ("upper", "vllm_nfp_positions_upper"),
                    ("at limit", "vllm_nfp_positions_at_limit"),
                    ("largest free", "vllm_nfp_positions_largest_free"),
                    ("predicted", "vllm_nfp_predicted_positions"),
                    ("idle-compute", "vllm_nfp_idle_compute_positions"),
                )
            },
            sort="batch_size",
            labelled="max by (module, batch_size, context, basis) ("
            + g.metric("vllm_nfp_positions_basis", _TOLERANCE)
            + ")",
            names=g.BASES,
        ),
    )


def _by_cell(name: str) -> str:
    return f"min by (module, batch_size, context) ({g.metric(name, _TOLERANCE)})"


def _layers(page: dashboard.Dashboard) -> None:
    module = 'module="$module"'
    by_layer = {
        part: f"sum by (layer) (rate("
        f"{g.metric(f'vllm_nfp_layer_latency_seconds_{part}', module)}[$__rate_interval]))"
        for part in ("sum", "count")
    }
    g.row(
        page,
        "Layers (with layer_histograms in --nfp-config)",
        g.heat(
            Frame(
                "Mean time by layer",
                "One row per timed layer, brighter is slower. Mean over all probes of the "
                "interval, whatever their shape. Choose a module other than model.",
                "Rows should look alike. A layer that stands out runs another kernel (a sliding "
                "window, a dense layer in an MoE model) or another data type.",
                12,
            ),
            Query(f"{by_layer['sum']} / ({by_layer['count']} > 0)", "{{layer}}"),
            unit="s",
            buckets=False,
        ),
        g.heat(
            Frame(
                "Distribution of layer times",
                "Number of timed layers of the chosen module in each time bucket.",
                "Two bands: two shapes or two kernels. A long tail above one band: other work "
                "disturbs the GPU.",
                12,
            ),
            Query(
                "sum by (le) (increase("
                f"{g.metric('vllm_nfp_layer_latency_seconds_bucket', module)}[$__rate_interval]))",
                "{{le}}",
                as_heatmap=True,
            ),
            unit="s",
            buckets=True,
        ),
    )


def _experts(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "Experts",
        g.curves(
            Frame(
                "Active experts by tokens of a step",
                "Distinct experts of a layer that a step of so many tokens reads: counted from the "
                "choices of the model's routers (the mean of the servers), and as uniform routing "
                "would have it.",
                "Counted below uniform: more positions are free than uniform routing says, and "
                "predictions use the counted routing. Nothing is counted before steps without a "
                "CUDA graph have run, such as long prompts.",
                18,
                8,
            ),
            {routing: _active(routing) for routing in ("counted", "uniform")},
            x="tokens",
            unit="none",
            colors={"counted": g.BLUE, "uniform": g.GREY},
            dashed=("uniform",),
            axis="experts",
        ),
        g.number(
            Frame(
                "Skew of the routing",
                "Exponent s of the counted routing: the experts' shares fall about like rank to "
                "the minus s (the mean of the servers). 0 is uniform.",
                "A change without a new model: traffic of another kind.",
                6,
                8,
            ),
            f"avg({g.metric('vllm_nfp_routing_skew')})",
            decimals=2,
        ),
    )


def _active(routing: str) -> str:
    found = g.metric("vllm_nfp_active_experts", f'routing="{routing}"')
    return f"avg by (tokens) ({found})"


def _samples(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "How it was measured",
        g.matrix(
            Frame(
                "How steps at context $context ran",
                "Full or piecewise CUDA graph, or none (eager), by batch size and positions.",
                "A change along a row is a cliff. If draft lengths beyond it pay, extend vLLM's "
                "cudagraph_capture_sizes.",
                12,
                6,
            ),
            "max by (batch_size, positions, execution) ("
            + g.metric("vllm_nfp_execution_info", 'context="$context"', 'module="model"')
            + ")",
            rows="batch_size",
            columns="positions",
            value="execution",
        ),
        g.matrix(
            Frame(
                "Pairs of samples at each point of $module",
                "Pairs (N positions and one) kept, by batch size and positions, at the chosen "
                "context (the fewest of the selected servers). A point without pairs is inferred "
                "from other points, or predicted.",
                "No pairs need no action: the probe measures where an answer depends on it. The "
                "overview shows its pace and budget.",
                12,
                6,
            ),
            "min by (batch_size, positions) ("
            + g.metric("vllm_nfp_samples", 'context="$context"', 'module="$module"')
            + " or "
            + g.metric("vllm_nfp_samples", 'module="$module"', _CONTEXT_FREE)
            + ")",
            rows="batch_size",
            columns="positions",
        ),
        g.series(
            Frame(
                "Time spent on probes",
                "Seconds of GPU time (host time on a CPU) per second spent on probes.",
                "The average stays within the budget. Peaks are single large shapes.",
                9,
                6,
            ),
            Query(
                g.per_second("vllm_nfp_probe_gpu_seconds_total", "instance, engine"),
                "{{instance}} engine {{engine}}",
            ),
            unit="percentunit",
        ),
        g.number(
            Frame(
                "Answers without measurement",
                "What answers rest on where nothing was measured (the weakest of the engines). "
                "profile: an earlier profile of this model and GPU. predicted: the prediction for "
                "both. generic: neither is known, and intervals are wide.",
                "generic: the label reason of vllm_nfp_prior_info says why; a calibration helps.",
                5,
                6,
            ),
            g.code(g.PRIORS, lambda prior: g.metric("vllm_nfp_prior_info", f'prior="{prior}"')),
            names=g.PRIORS,
        ),
        g.number(
            Frame(
                "Startup cost",
                "Startup time added by the probe: imports, check, first scan and predictions (the "
                "longest of the engines).",
                "startup_seconds and capture_seconds in --nfp-config limit it.",
                5,
                6,
            ),
            f"max({g.metric('vllm_nfp_startup_seconds')})",
            unit="s",
            decimals=1,
        ),
        g.number(
            Frame(
                "Memory of the probe's graphs",
                "GPU memory of the probe's CUDA graphs (the largest of the engines); 0 if there "
                "are none.",
                "graph_memory_mib in --nfp-config limits it.",
                5,
                6,
            ),
            f"max({g.metric('vllm_nfp_graph_bytes')})",
            unit="bytes",
        ),
    )
