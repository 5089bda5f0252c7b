"""The row of free positions, by module, batch size and time."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards.builder import grafana as g
from dashboards.builder.grafana import Frame, Query
from dashboards.builder.overview.selections import BY_ENGINE, CELL, LINE, LIVE_FREE, live_model

_FREE = g.mean("vllm_nfp_free_tokens", *LINE)
_USED = f"{g.mean('vllm_nfp_live_batch_size')} * {g.mean('vllm_nfp_live_positions')}"


def free_positions(page: dashboard.Dashboard) -> None:
    """Free positions, and what they rest on."""
    g.row(
        page,
        "Free positions by batch size, at context $context",
        g.matrix(
            Frame(
                "Free positions by module and batch size",
                "NFP of each module at the chosen context, one column per batch size (the smallest"
                " of the selected servers).",
                "The module with the fewest free positions limits the step. Try another backend "
                "for attention, a larger batch for experts, quantization for a dense block.",
                12,
            ),
            f"min by (module, batch_size) ({g.metric('vllm_nfp_positions', *CELL)})",
            rows="module",
            columns="batch_size",
        ),
        g.matrix(
            Frame(
                "What they rest on",
                "Basis of the same numbers. measured: pairs of runs of this shape. inferred: pairs "
                "of other shapes. predicted: the prediction.",
                "measured, inferred: trust the interval. predicted: treat it as a forecast.",
                12,
            ),
            "max by (module, batch_size, basis) ("
            + g.metric("vllm_nfp_positions_basis", *CELL)
            + ")",
            rows="module",
            columns="batch_size",
            value="basis",
            names=g.BASES,
        ),
        g.bars(
            Frame(
                "Estimated, predicted and idle-compute",
                "NFP of each module at the chosen batch sizes B and context: the probe's estimate, "
                "predicted from hardware and kernel granularity, and by the roofline rule (free "
                "until compute-bound). Predictions exist for known GPUs only.",
                "Use the estimate. If the prediction is far off, the kernels are not those it "
                "assumes: see the deep dive.",
                24,
            ),
            {
                name: (_by_cell(f"vllm_nfp_{source}positions"), color)
                for name, source, color in (
                    ("estimated", "", g.BLUE),
                    ("predicted", "predicted_", g.ORANGE),
                    ("idle-compute", "idle_compute_", g.GREY),
                )
            },
            axis="positions",
        ),
        g.series(
            Frame(
                "Free positions where traffic is",
                "NFP of each module at the smallest reported batch size and context that hold the "
                "last real step, and the 95 % interval of the whole step's. Each is the median of "
                "the last 5 minutes, so a line moves where NFP or traffic has moved and stays.",
                "A step means that traffic moved to another batch size or context. A lasting drop "
                "at a restart or a jump of step times (both are marked) is a regression: see the "
                "alert NfpDropped.",
                8,
            ),
            Query(g.steady(f"max({live_model('vllm_nfp_positions_upper')})"), "upper"),
            Query(g.steady(f"min({live_model('vllm_nfp_positions_lower')})"), "lower"),
            Query(
                g.steady(f"min by (module) ({g.live('vllm_nfp_positions', *LINE)})"),
                "{{module}}",
            ),
            colors={"upper": g.GREY, "lower": g.GREY, **g.MODULE_COLORS},
            band=("upper", "lower"),
            steps=True,
            decimals=0,
            axis="positions",
        ),
        g.series(
            Frame(
                "Batch size and positions in use",
                "Sequences per step, positions per sequence that the step ran, and free positions "
                "per sequence (median of the last 5 minutes).",
                "Above the free positions every step is slower: shorten the draft length at this "
                "batch size.",
                8,
            ),
            Query(f"max({g.metric('vllm_nfp_live_batch_size')})", "batch size"),
            Query(f"max({g.metric('vllm_nfp_live_positions')})", "positions in use"),
            Query(g.steady(f"min({LIVE_FREE})"), "free positions"),
            colors={
                "batch size": g.GREY,
                "positions in use": g.VERMILLION,
                "free positions": g.GREEN,
            },
            dashed=("free positions",),
            steps=True,
            decimals=0,
        ),
        g.series(
            Frame(
                "Headroom left unused",
                "Fraction of a step's free tokens that were not used: free tokens / (used + free "
                "tokens), means over the interval.",
                "Lasting and high: speculation would reduce latency, or larger batches would raise"
                " throughput.",
                8,
            ),
            Query(f"{_FREE} / ({_FREE} + {_USED})", BY_ENGINE),
            unit="percentunit",
            decimals=0,
        ),
    )


def _by_cell(name: str) -> str:
    chosen = g.metric(name, *CELL, 'batch_size=~"$batch_size"')
    smallest = f"min by (module, batch_size) ({chosen})"
    # Bars want one text for each group.
    return f'label_join({smallest}, "cell", " B=", "module", "batch_size")'
