"""The dashboard "NFP overview": free positions, how many are used, and what the probe costs."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from dashboards.builder import grafana as g
from dashboards.builder.grafana import Frame, Query

UID = "nfp-overview"
TITLE = "NFP overview"

_LINE = ('epsilon="$epsilon"',)
_CELL = ('context="$context"', *_LINE)
_FREE_TOKENS = g.metric("vllm_nfp_free_tokens", *_LINE)
_BY_ENGINE = "{{instance}} engine {{engine}}"
_FREE = g.mean("vllm_nfp_free_tokens", *_LINE)
_USED = f"{g.mean('vllm_nfp_live_batch_size')} * {g.mean('vllm_nfp_live_positions')}"
_PLACES = g.metric("vllm:spec_decode_num_accepted_tokens_per_pos_total")
"""vLLM counts each place in a draft apart, from its start on: as many as are configured."""
_DRAFTS = g.per_second("vllm:spec_decode_num_drafts_total")


def _live_model(name: str, *more: str) -> str:
    return g.live(name, 'module="model"', *_LINE, *more)


def _live_basis(basis: str) -> str:
    return _live_model("vllm_nfp_positions_basis", f'basis="{basis}"')


_LIVE_MODEL = _live_model("vllm_nfp_positions")


def overview() -> models.Dashboard:
    """The dashboard, ready to be written as JSON."""
    page = g.page(
        UID,
        TITLE,
        "Free positions per sequence of the selected servers, how many live traffic uses, and what"
        " the probe costs.",
        other=("NFP deep dive", "nfp-deep-dive"),
    )
    page.with_variable(
        g.variable(
            "batch_size",
            "Batch sizes",
            "Batch sizes of the bars, in sequences.",
            'label_values(vllm_nfp_positions{model_name="$model_name"}, batch_size)',
            many=True,
            numeric=True,
            first=("1", "8", "32"),
        )
    )
    _now(page)
    _free_width(page)
    _speculation(page)
    _probe(page)
    return g.finished(page)


def _now(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "Now",
        g.number(
            Frame(
                "Free positions",
                "Free positions per sequence of the whole step, at the smallest reported batch "
                "size and context that hold the last real step (the smallest of the engines). No "
                "data if none do.",
                "2 or more: speculative decoding can be free, with draft length = free positions -"
                " 1. 1: every extra position costs more than the tolerance.",
                4,
                4,
            ),
            f"min({_LIVE_MODEL})",
            steps=((None, g.VERMILLION), (2, g.ORANGE), (4, g.BLUE)),
        ),
        g.number(
            Frame(
                "Basis",
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
                3,
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
                3,
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
                3,
                4,
            ),
            f"max({g.metric('vllm_nfp_live_context')})",
        ),
        g.number(
            Frame(
                "Probe state",
                "State of the probe (the worst of the engines). warming: no estimate yet. probing:"
                " estimates exist. steady: nothing is worth a probe now. passive: real steps are "
                "timed, no probe runs. disabled: off after a fault.",
                "disabled: read the reason in the server's log. Serving goes on without the probe.",
                3,
                4,
            ),
            g.state_code(),
            names=g.STATES,
        ),
    )


def _free_width(page: dashboard.Dashboard) -> None:
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
            f"min by (module, batch_size) ({g.metric('vllm_nfp_positions', *_CELL)})",
            rows="module",
            columns="batch_size",
            steps=((None, g.VERMILLION), (2, g.ORANGE), (4, g.BLUE)),
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
            + g.metric("vllm_nfp_positions_basis", *_CELL)
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
            Query(g.steady(f"max({_live_model('vllm_nfp_positions_upper')})"), "upper"),
            Query(g.steady(f"min({_live_model('vllm_nfp_positions_lower')})"), "lower"),
            Query(
                g.steady(f"min by (module) ({g.live('vllm_nfp_positions', *_LINE)})"),
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
            Query(g.steady(f"min({_LIVE_MODEL})"), "free positions"),
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
            Query(f"{_FREE} / ({_FREE} + {_USED})", _BY_ENGINE),
            unit="percentunit",
            decimals=0,
        ),
    )


def _by_cell(name: str) -> str:
    chosen = g.metric(name, *_CELL, 'batch_size=~"$batch_size"')
    smallest = f"min by (module, batch_size) ({chosen})"
    # Bars want one text for each group.
    return f'label_join({smallest}, "cell", " B=", "module", "batch_size")'


def _speculation(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "Speculative decoding (with --speculative-config)",
        g.series(
            Frame(
                "Draft length: run, accepted, free",
                "Mean number of drafted and accepted tokens per step, and the free draft length: "
                "free positions - 1 (median of the last 5 minutes).",
                "Drafted above free: every step is slower, which pays only while acceptance is "
                "high. Accepted close to drafted, and both below free: draft more.",
                8,
            ),
            Query(
                f"{g.per_second('vllm:spec_decode_num_draft_tokens_total')} / {_DRAFTS}", "drafted"
            ),
            Query(
                f"{g.per_second('vllm:spec_decode_num_accepted_tokens_total')} / {_DRAFTS}",
                "accepted",
            ),
            Query(g.steady(f"min({_LIVE_MODEL}) - 1"), "free"),
            colors={"drafted": g.VERMILLION, "accepted": g.BLUE, "free": g.GREEN},
            dashed=("free",),
            axis="tokens per sequence and step",
        ),
        g.series(
            Frame(
                "Draft length: recommended and configured",
                "Recommended: the draft length with the most tokens per second at the batch size "
                "and context of the last real step (median of the last 5 minutes), from step times "
                "and the acceptance that this server counts (or draft_acceptance in --nfp-config). "
                "Configured: "
                "num_speculative_tokens. Drafted: what steps drafted. Controller: its choice for "
                "the last step, with --nfp-draft-control. Drafts count as free until the "
                "controller has learned their cost.",
                "Drafted above recommended: shorten num_speculative_tokens, or serve with the "
                "table of vllm-nfp recommend; see docs/draft-lengths.md.",
                8,
            ),
            Query(
                g.steady(f"min({g.at_live_batch('vllm_nfp_recommended_draft_length')})"),
                "recommended",
            ),
            Query(f"max(count by (instance, engine) ({_PLACES}))", "configured"),
            Query(
                f"{g.per_second('vllm:spec_decode_num_draft_tokens_total')} / {_DRAFTS}", "drafted"
            ),
            Query(f"max({g.metric('vllm_nfp_live_draft_length')})", "controller, last step"),
            colors={
                "recommended": g.GREEN,
                "configured": g.GREY,
                "drafted": g.VERMILLION,
                "controller, last step": g.BLUE,
            },
            dashed=("configured",),
            axis="tokens per sequence and step",
        ),
        g.series(
            Frame(
                "Acceptance by draft position",
                "Fraction of drafts whose token at this position was accepted; 0 is the first.",
                "End the draft where acceptance is too low to pay for the position, even a free "
                "one.",
                8,
            ),
            Query(
                f"{g.per_second('vllm:spec_decode_num_accepted_tokens_per_pos_total', 'position')}"
                f" / on () group_left () {_DRAFTS}",
                "position {{position}}",
            ),
            unit="percentunit",
        ),
    )


def _probe(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "Probe",
        g.states(
            Frame(
                "State",
                "State of each engine's probe over time.",
                "Long warming under load: see NfpNoEstimate in the runbook. disabled: read the "
                "server's log.",
                8,
            ),
            by="instance, engine",
            legend=_BY_ENGINE,
        ),
        g.series(
            Frame(
                "Overhead and budget",
                "Fraction of serving time spent on probes since startup, and the maximum set by "
                "--nfp-overhead-budget.",
                "Above the budget: a fault, see NfpOverheadAboveBudget in the runbook.",
                8,
            ),
            Query(
                f"max by (instance, engine) ({g.metric('vllm_nfp_overhead_ratio')})",
                _BY_ENGINE,
            ),
            Query(f"min({g.metric('vllm_nfp_overhead_budget_ratio')})", "budget"),
            colors={"budget": g.VERMILLION},
            dashed=("budget",),
            unit="percentunit",
            decimals=2,
        ),
        g.series(
            Frame(
                "Probes",
                "Probe pairs per minute, by outcome. prepared: warm-up runs and captures while "
                "serving or idle. startup, startup_prepared: at startup. refused: no free KV "
                "blocks or memory.",
                "Only refused: the KV cache is full and estimates get old.",
                8,
            ),
            Query(f"60 * {g.per_second('vllm_nfp_probes_total', 'outcome')}", "{{outcome}}"),
            colors={
                "measured": g.BLUE,
                "refused": g.VERMILLION,
                "startup": g.GREY,
                "startup_prepared": g.GREY,
            },
            axis="pairs per minute",
        ),
    )
