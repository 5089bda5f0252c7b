"""The dashboard "NFP overview": what is free now, what of it is used, and what the probe costs."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from dashboards.builder import grafana as g
from dashboards.builder.grafana import Frame, Query

UID = "nfp-overview"
TITLE = "NFP overview"

_LINE = ('epsilon="$epsilon"',)
_CELL = ('context="$context"', *_LINE)
_LIVE_MODEL = g.live("vllm_nfp_positions", 'module="model"', *_LINE)
_FREE_TOKENS = g.metric("vllm_nfp_free_tokens", *_LINE)
_BY_ENGINE = "{{instance}} engine {{engine}}"
_FREE = g.mean("vllm_nfp_free_tokens", *_LINE)
_USED = f"{g.mean('vllm_nfp_live_batch_size')} * {g.mean('vllm_nfp_live_positions')}"
_PLACES = g.metric("vllm:spec_decode_num_accepted_tokens_per_pos_total")
"""vLLM counts each place in a draft apart, from its start on: as many as are configured."""
_DRAFTS = g.per_second("vllm:spec_decode_num_drafts_total")


def overview() -> models.Dashboard:
    """The dashboard, ready to be written as JSON."""
    page = g.page(
        UID,
        TITLE,
        "How many positions per sequence the selected servers decode for free, what live "
        "traffic makes of it, and what the probe costs.",
        other=("NFP deep dive", "nfp-deep-dive"),
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
                "Positions per sequence that the whole step decodes within the tolerance, at the "
                "batch size and context of the last real step (the smallest of the engines). "
                "No data while no probed batch size and context hold that step.",
                "From 2 on, speculative decoding can be free: draft length = free positions - 1. "
                "At 1, every further position costs more than the tolerance.",
                4,
                4,
            ),
            f"min({_LIVE_MODEL})",
            steps=((None, g.VERMILLION), (2, g.ORANGE), (4, g.BLUE)),
        ),
        g.number(
            Frame(
                "Positions in use",
                "Positions per sequence that the last real decode step ran: 1 without "
                "speculation, draft length + 1 with it (the largest of the engines).",
                "Compare with the free positions: below them there is room, above them each step "
                "pays.",
                4,
                4,
            ),
            f"max({g.metric('vllm_nfp_live_positions')})",
        ),
        g.number(
            Frame(
                "Free tokens left",
                "Tokens that would still fit into the last real step within the tolerance, over "
                "all selected engines: batch size x (free - used positions).",
                "A large number means unused width: raise the draft length or the batch.",
                4,
                4,
            ),
            f"sum({_FREE_TOKENS})",
        ),
        g.number(
            Frame(
                "Batch size",
                "Sequences in the last real decode step (the largest of the engines).",
                "NFP shrinks as the batch grows: read the free positions at this batch size.",
                4,
                4,
            ),
            f"max({g.metric('vllm_nfp_live_batch_size')})",
        ),
        g.number(
            Frame(
                "Context",
                "Mean number of tokens that a sequence of the last real step had in the KV cache "
                "(the largest of the engines).",
                "If it lies beyond the probed contexts, set contexts in --nfp-config.",
                4,
                4,
            ),
            f"max({g.metric('vllm_nfp_live_context')})",
        ),
        g.number(
            Frame(
                "Probe state",
                "State of the probe; of several engines the worst. warming: no estimate yet; "
                "probing: estimates exist; steady: every point has its samples; "
                "passive: nothing is probed, real steps are watched; disabled: off "
                "after a fault.",
                "If disabled, the server's log says why; serving goes on without the probe.",
                4,
                4,
            ),
            g.state_code(""),
            states=True,
        ),
    )


def _free_width(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "Free width",
        g.matrix(
            Frame(
                "Free positions by module and batch size",
                "NFP of each module at the chosen context, one column for each batch size; the "
                "smallest of the selected servers.",
                "The module with the fewest free positions is the one to work on: attention by "
                "another backend, experts by a larger batch, a dense block by quantization.",
                8,
            ),
            f"min by (module, batch_size) ({g.metric('vllm_nfp_positions', *_CELL)})",
            rows="module",
            columns="batch_size",
            steps=((None, g.VERMILLION), (2, g.ORANGE), (4, g.BLUE)),
        ),
        g.bars(
            Frame(
                "Measured, predicted and idle-compute",
                "NFP of each module and batch size B at the chosen context, as measured, as "
                "predicted from hardware and kernel granularity, and by the usual rule that "
                "positions are free until idle compute is used up. Predictions exist for known "
                "GPUs only.",
                "Trust what is measured. Where the prediction is far off, the kernels are not "
                "those it assumes: see the deep dive.",
                16,
            ),
            {
                name: (_by_cell(f"vllm_nfp_{source}positions"), color)
                for name, source, color in (
                    ("measured", "", g.BLUE),
                    ("predicted", "predicted_", g.ORANGE),
                    ("idle-compute", "idle_compute_", g.GREY),
                )
            },
            axis="positions",
        ),
        g.series(
            Frame(
                "Free positions where traffic is",
                "NFP of each module at the batch size and context of the last real step.",
                "Steps come from traffic moving to another batch size or context. A lasting drop "
                "at a restart (marked) is a regression: see the alert NfpDropped.",
                8,
            ),
            Query(
                f"min by (module) ({g.live('vllm_nfp_positions', *_LINE)})",
                "{{module}}",
            ),
            colors=g.MODULE_COLORS,
            steps=True,
            decimals=0,
            axis="positions",
        ),
        g.series(
            Frame(
                "Batch and width in use",
                "Sequences in a step, positions per sequence that it ran, and how many would be "
                "free.",
                "Positions above the free ones slow every step: shorten the draft length at this "
                "batch size.",
                8,
            ),
            Query(f"max({g.metric('vllm_nfp_live_batch_size')})", "batch size"),
            Query(f"max({g.metric('vllm_nfp_live_positions')})", "positions in use"),
            Query(f"min({_LIVE_MODEL})", "free positions"),
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
                "Free width left unused",
                "Share of the tokens that a step could decode within the tolerance and did not: "
                "free tokens / (used + free tokens), means over the interval.",
                "High and lasting: there is latency to gain from speculation, or throughput from "
                "larger batches.",
                8,
            ),
            Query(f"{_FREE} / ({_FREE} + {_USED})", _BY_ENGINE),
            unit="percentunit",
            decimals=0,
        ),
    )


def _by_cell(name: str) -> str:
    smallest = f"min by (module, batch_size) ({g.metric(name, *_CELL)})"
    # Bars want one text for each group.
    return f'label_join({smallest}, "cell", " B=", "module", "batch_size")'


def _speculation(page: dashboard.Dashboard) -> None:
    g.row(
        page,
        "Speculative decoding (with --speculative-config)",
        g.series(
            Frame(
                "Draft length: run, accepted, free",
                "Mean number of drafted and of accepted tokens in a step, and the draft length "
                "that costs nothing: free positions - 1.",
                "Drafted above free: each step pays, which is worth it only while acceptance is "
                "high. Accepted near drafted and both below free: draft more.",
                8,
            ),
            Query(
                f"{g.per_second('vllm:spec_decode_num_draft_tokens_total')} / {_DRAFTS}", "drafted"
            ),
            Query(
                f"{g.per_second('vllm:spec_decode_num_accepted_tokens_total')} / {_DRAFTS}",
                "accepted",
            ),
            Query(f"min({_LIVE_MODEL}) - 1", "free"),
            colors={"drafted": g.VERMILLION, "accepted": g.BLUE, "free": g.GREEN},
            dashed=("free",),
            axis="tokens per sequence and step",
        ),
        g.series(
            Frame(
                "Draft length: recommended and configured",
                "The draft length with the most tokens per second at the batch size and context of "
                "the last real step, from measured step times and the acceptance that this server "
                "counts (or draft_acceptance in --nfp-config); the configured "
                "num_speculative_tokens; what steps drafted; with --nfp-draft-control, what the "
                "controller chose for the last step. Drafts count as free until the controller "
                "has learned what a drafted token takes.",
                "Drafted above recommended: shorten num_speculative_tokens, or let vllm-nfp "
                "recommend write a table by batch size; see docs/draft-lengths.md.",
                8,
            ),
            Query(f"min({g.at_live_batch('vllm_nfp_recommended_draft_length')})", "recommended"),
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
                "Share of drafts whose token at this place was accepted; 0 is the first.",
                "Cut the draft length where the share falls so low that the position is not "
                "worth its time, even if it is free.",
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
                "What the probe of each engine was doing.",
                "Long warming under load: the batch sizes or contexts probed do not fit the "
                "budget, see NfpNoEstimate in the runbook. Disabled: read the server's log.",
                8,
            ),
            by="instance, engine",
            legend=_BY_ENGINE,
        ),
        g.series(
            Frame(
                "Overhead and budget",
                "Share of serving time that probes took since the start, and the largest share "
                "that --nfp-overhead-budget allows.",
                "Above the budget is a fault: see NfpOverheadAboveBudget in the runbook.",
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
                "Pairs of probes a minute, by outcome. prepared: warm-up runs and captures while "
                "serving or idle. startup and startup_prepared: at the start. refused: no KV "
                "blocks or memory was free.",
                "Only refused ones: the KV cache is full, estimates grow old.",
                8,
            ),
            Query(f"60 * {g.per_second('vllm_nfp_probes_total', 'outcome')}", "{{outcome}}"),
            colors={
                "measured": g.BLUE,
                "refused": g.VERMILLION,
                "startup": g.GREY,
                "startup_prepared": g.GREY,
            },
            axis="pairs a minute",
        ),
    )
