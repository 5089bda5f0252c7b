"""The dashboard "NFP fleet": free positions, draft lengths and gains by model and GPU."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from dashboards.builder import grafana as g
from dashboards.builder.grafana import Column, Frame, Query

UID = "nfp-fleet"
TITLE = "NFP fleet"

_LINE = ('module="model"', 'epsilon="$epsilon"')
_MODELS = 'model_name=~"$model_name"'
_DEVICES = 'device=~"$device"'
_BY_GPU = "model_name, device"
_BY_SERVER = "cluster, namespace, pod, instance, model_name, engine"
_NAMES = {
    "model_name": "model",
    "device": "GPU",
    "instance": "server",
    "cluster": "cluster",
    "namespace": "namespace",
    "pod": "pod",
    "engine": "engine",
}
_LEGEND = "{{model_name}} on {{device}}"


def _fleet(name: str, *more: str) -> str:
    """A metric of the chosen clusters, namespaces and models."""
    matchers = ",".join((g.PLACE, _MODELS, *more))
    return f"{name}{{{matchers}}}"


def _on_gpu(expr: str) -> str:
    """The same of the chosen GPUs, with the label device."""
    info = _fleet("vllm_nfp_server_info", _DEVICES)
    of_engine = f"max by ({g.ONE_ENGINE}, device) ({info})"
    return f"({expr}) * on ({g.ONE_ENGINE}) group_left (device) {of_engine}"


_FREE = g.in_live_cell(_fleet("vllm_nfp_positions", *_LINE), _fleet("vllm_nfp_live_cell_info"))
_RUNNING = _fleet("vllm_nfp_live_running_draft_length")
_RECOMMENDED = _fleet("vllm_nfp_live_recommended_draft_length")
_GAIN = f"{_fleet('vllm_nfp_live_draft_gain_ratio')} - 1"
_GAIN_LOWER = f"{_fleet('vllm_nfp_live_draft_gain_ratio_lower')} - 1"


_ENGINES = _on_gpu(_fleet("vllm_nfp_overhead_ratio"))
_DISABLED = _fleet("vllm_nfp_state", 'state="disabled"')


def _basis(basis: str) -> str:
    name = "vllm_nfp_live_recommended_draft_length_basis"
    return _on_gpu(_fleet(name, f'basis="{basis}"'))


def fleet() -> models.Dashboard:
    """The dashboard, ready to be written as JSON."""
    page = g.frame_of(
        UID,
        TITLE,
        "All servers with the probe, by model and GPU: free positions, the draft length that runs, "
        "the recommended one, and what it would gain.",
        others={"NFP overview": "nfp-overview", "NFP deep dive": "nfp-deep-dive"},
    )
    selected = f"{{{g.PLACE}}}"
    for name, label, description, metric in (
        ("model_name", "Models", "Served models.", f"vllm_nfp_state{selected}"),
        ("device", "GPUs", "Devices of the servers.", f"vllm_nfp_server_info{selected}"),
    ):
        query = f"label_values({metric}, {name})"
        page.with_variable(g.variable(name, label, description, query, many=True))
    page.with_variable(g.tolerance(f"vllm_nfp_positions{selected}"))
    _summary(page)
    _groups(page)
    _servers(page)
    return g.finished(page)


def _summary(page: dashboard.Dashboard) -> None:
    surely = _on_gpu(f"({_GAIN_LOWER}) > 0.02")
    g.row(
        page,
        "All servers",
        g.number(
            Frame(
                "Engines with a probe",
                "vLLM engines of the selected servers that report NFP metrics.",
                "Fewer than you run: see the alerts NfpProbeGone and NfpServerUnreachable.",
                5,
                4,
            ),
            f"count({_ENGINES})",
        ),
        g.number(
            Frame(
                "Engines with a sure gain",
                "Engines whose draft length, if changed to the recommended one, would surely give "
                "2 % more tokens per second or better (lower end of the 95 % interval).",
                "Above 0: change the draft length of the servers on top of the list below.",
                5,
                4,
            ),
            f"count({surely}) or vector(0)",
            steps=((None, g.GREEN), (1, g.ORANGE)),
        ),
        g.number(
            Frame(
                "Median gain",
                "Median over the engines of the gain at the recommended draft length over the one "
                "that runs.",
                "Near 0 %: the fleet runs close to its best draft lengths.",
                5,
                4,
            ),
            f"quantile(0.5, {_on_gpu(_GAIN)})",
            unit="percentunit",
            steps=g.GAIN_STEPS,
        ),
        g.number(
            Frame(
                "Recommendations that are only predicted",
                "Engines whose recommended draft length rests on the prediction alone.",
                "Trust these gains less. Probes replace predictions while a server has traffic.",
                5,
                4,
            ),
            f"count({_basis('predicted')}) or vector(0)",
            steps=((None, g.GREEN), (1, g.ORANGE)),
        ),
        g.number(
            Frame(
                "Probes disabled",
                "Engines whose probe is off after a fault. Serving continues without the probe.",
                "Above 0: search the logs of these servers for the reason.",
                4,
                4,
            ),
            f"sum({_DISABLED})",
            steps=((None, g.GREEN), (1, g.VERMILLION)),
        ),
    )


def _groups(page: dashboard.Dashboard) -> None:
    def median(expr: str) -> str:
        return f"quantile by ({_BY_GPU}) (0.5, {_on_gpu(expr)})"

    g.row(
        page,
        "By model and GPU",
        g.servers(
            Frame(
                "Models and GPUs",
                "Medians over the engines of each model on each GPU, at their live batch sizes and "
                "contexts. runs and recommended: draft lengths. gain: tokens per second at the "
                "recommended draft length over those at the one that runs. basis: the weakest of "
                "the engines.",
                "Read it from the top: the largest gain comes first. Open the overview for one of "
                "its servers before you change a draft length.",
                24,
                7,
            ),
            {
                "engines": Column(f"count by ({_BY_GPU}) ({_ENGINES})"),
                "free positions": Column(median(_FREE)),
                "runs": Column(median(_RUNNING)),
                "recommended": Column(median(_RECOMMENDED)),
                "gain": Column(median(_GAIN), "percentunit", steps=g.GAIN_STEPS),
                "gain, at least": Column(median(_GAIN_LOWER), "percentunit"),
                "basis": Column(g.code(g.BASES, _basis, _BY_GPU), names=g.BASES),
            },
            labels=f"max by ({_BY_GPU}) ({_ENGINES})",
            renamed=_NAMES,
            sort="gain",
        ),
        g.series(
            Frame(
                "Gain by model and GPU",
                "Median gain at the recommended draft length over the one that runs, of each model "
                "on each GPU (median of the last 5 minutes).",
                "A rise after a deployment: its draft length no longer fits the traffic.",
                12,
            ),
            Query(g.lasting(median(_GAIN)), _LEGEND),
            unit="percentunit",
            decimals=0,
            minimum=None,
        ),
        g.series(
            Frame(
                "Free positions by model and GPU",
                "Median NFP of the whole step where live traffic is, of each model on each GPU "
                "(median of the last 5 minutes).",
                "A step: traffic moved to other batch sizes. A lasting drop after a deployment: "
                "see the alert NfpDropped.",
                12,
            ),
            Query(g.steady(median(_FREE)), _LEGEND),
            steps=True,
            decimals=0,
            axis="positions",
        ),
    )


def _servers(page: dashboard.Dashboard) -> None:
    def each(expr: str) -> str:
        return f"max by ({_BY_SERVER}, device) ({_on_gpu(expr)})"

    g.row(
        page,
        "By server",
        g.servers(
            Frame(
                "Servers",
                "Each engine of the selected servers, at its live batch size and context. Columns "
                "as above. Cluster, namespace and pod are shown where Prometheus has such labels.",
                "Change the draft length of the servers on top, where the gain is sure: at least "
                "above 0 %. Filter by any column.",
                24,
                10,
            ),
            {
                "free positions": Column(each(_FREE)),
                "runs": Column(each(_RUNNING)),
                "recommended": Column(each(_RECOMMENDED)),
                "gain": Column(each(_GAIN), "percentunit", steps=g.GAIN_STEPS),
                "gain, at least": Column(each(_GAIN_LOWER), "percentunit"),
                "basis": Column(g.code(g.BASES, _basis, f"{_BY_SERVER}, device"), names=g.BASES),
            },
            labels=f"max by ({_BY_SERVER}, device) ({_ENGINES})",
            renamed=_NAMES,
            sort="gain",
        ),
    )
