"""The first rows: what runs, what should run, and the last step."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards.builder import grafana as g
from dashboards.builder.grafana import Frame
from dashboards.builder.overview.selections import (
    GAIN,
    GAIN_LOWER,
    LINE,
    LIVE_FREE,
    LOSING,
    RECOMMENDED,
    RUNNING,
    live_model,
)

_OF_SEVERAL = "Of several engines, the one with the most to gain."


def now(page: dashboard.Dashboard) -> None:
    """Verdict and last step."""
    _verdict(page)
    _step(page)


def _verdict(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "Draft length: what runs, what is best",
        g.number(
            Frame(
                "Draft length that runs",
                "K, tokens drafted per sequence and step, as configured, or as draft control has "
                "set it (median of the last 5 minutes); 0 without speculation. "
                f"{_OF_SEVERAL}",
                "Compare with the recommended draft length.",
                4,
                4,
            ),
            g.steady(g.of_most_gain(RUNNING, GAIN)),
        ),
        g.number(
            Frame(
                "Recommended draft length",
                "K with the most tokens per second at the batch size and context of live traffic, "
                "from step times and the acceptance that this server counts (median of the last 5 "
                f"minutes). {_OF_SEVERAL} No data: acceptance or the cost of drafts is unknown.",
                "If it differs and the gain is worth it: serve with the output of vllm-nfp "
                "recommend --speculative-config, or turn on --nfp-draft-control.",
                4,
                4,
            ),
            g.steady(g.of_most_gain(RECOMMENDED, GAIN)),
        ),
        g.number(
            Frame(
                "Gain over what runs",
                "Tokens per second at the recommended draft length over those at the draft length "
                "that runs (median of the last 5 minutes). 0 %: keep what runs. The largest of the "
                "engines.",
                "Green, below 2 %: nothing to change. Orange: change the draft length.",
                4,
                4,
            ),
            g.lasting(f"max({GAIN}) - 1"),
            unit="percentunit",
            steps=g.GAIN_STEPS,
        ),
        g.number(
            Frame(
                "Gain, at least",
                "Lower end of the 95 % interval of that gain, as far as it depends on step times. "
                "Below 0 %: the change may lose.",
                "Change the draft length where this is above 0 %. Otherwise wait for measurements.",
                4,
                4,
            ),
            g.lasting(f"max({GAIN_LOWER}) - 1"),
            unit="percentunit",
            steps=((None, g.GREY), (0, g.GREEN), (0.02, g.ORANGE)),
        ),
        g.number(
            Frame(
                "Basis of the recommendation",
                "What the recommended draft length rests on (the weakest of the engines). "
                "measured: pairs of runs of this shape. inferred: pairs of other shapes. "
                "predicted: the prediction.",
                "predicted: a forecast. It is replaced while the server has traffic.",
                4,
                4,
            ),
            g.code(
                g.BASES,
                lambda basis: g.metric(
                    "vllm_nfp_live_recommended_draft_length_basis", f'basis="{basis}"'
                ),
            ),
            names=g.BASES,
        ),
        g.number(
            Frame(
                "Probe state",
                "State of the probe (the worst of the engines). warming: no estimate yet. probing:"
                " estimates exist. steady: nothing is worth a probe now. passive: real steps are "
                "timed, no probe runs. disabled: off after a fault.",
                "disabled: read the reason in the log of the server. Serving continues without the "
                "probe.",
                4,
                4,
            ),
            g.state_code(),
            names=g.STATES,
        ),
    )


def _step(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "The last step",
        g.warning(
            Frame(
                "Free positions",
                "Free positions per sequence of the whole step, at the smallest reported batch "
                "size and context that hold the last real step (the smallest of the engines). Red: "
                "drafts exceed them and the recommended length, and surely lose tokens per second. "
                "No data if no reported batch size and context hold the step.",
                "1 is normal for models with experts at small batches, where longer drafts may "
                "still pay. Red: shorten the draft length.",
                4,
                4,
            ),
            f"min({LIVE_FREE})",
            LOSING,
            "free",
            "free, and drafts lose",
        ),
        g.number(
            Frame(
                "Basis of the free positions",
                "What the free positions rest on (the weakest of the engines). measured: pairs of "
                "runs of this shape. inferred: pairs of other shapes. predicted: the prediction.",
                "predicted: a forecast. It is replaced while the server has traffic.",
                4,
                4,
            ),
            g.code(g.BASES, _live_basis),
            names=g.BASES,
        ),
        g.number(
            Frame(
                "Positions in use",
                "Positions per sequence of the last real decode step: 1 without speculation, draft"
                " length + 1 with it (the largest of the engines).",
                "Compare with the free positions. Below them there is headroom, above them steps "
                "are slower.",
                4,
                4,
            ),
            f"max({g.metric('vllm_nfp_live_positions')})",
        ),
        g.number(
            Frame(
                "Free tokens left",
                "Tokens that the last real step could have added within the tolerance, at its own "
                "batch size and context, summed over the selected engines: batch size x (free - "
                "used positions).",
                "Large: there is headroom. Try longer drafts if acceptance is high.",
                4,
                4,
            ),
            f"sum({_FREE_TOKENS})",
        ),
        g.number(
            Frame(
                "Batch size",
                "Sequences in the last real decode step (the largest of the engines).",
                "NFP falls as the batch grows. Read the free positions at this batch size.",
                4,
                4,
            ),
            f"max({g.metric('vllm_nfp_live_batch_size')})",
        ),
        g.number(
            Frame(
                "Context",
                "Mean number of tokens per sequence in the KV cache in the last real step (the "
                "largest of the engines).",
                "If it exceeds the reported contexts, set contexts in --nfp-config.",
                4,
                4,
            ),
            f"max({g.metric('vllm_nfp_live_context')})",
        ),
    )


_FREE_TOKENS = g.metric("vllm_nfp_free_tokens", *LINE)


def _live_basis(basis: str) -> str:
    return live_model("vllm_nfp_positions_basis", f'basis="{basis}"')
