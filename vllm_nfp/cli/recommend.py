"""``vllm-nfp recommend``: draft lengths by batch size, from what was measured or is predicted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vllm_nfp import releases, scrape
from vllm_nfp.cli.common import NameChoice, Refusal, json_option, parse_list, read_profile
from vllm_nfp.cli.recommend_table import print_lengths, size_range
from vllm_nfp.cli.terminal import Console
from vllm_nfp.draft import sources
from vllm_nfp.draft.acceptance import Acceptance, AcceptanceError, constant, from_rates
from vllm_nfp.draft.recommend import Recommendation, RecommendError, recommend, server_version
from vllm_nfp.draft.schedule import (
    DEFAULT_SLACK,
    LARGEST_DRAFT_COST,
    LARGEST_DRAFT_LENGTH,
    DraftCost,
    ScheduleRow,
)
from vllm_nfp.draft.sources import COUNTERS, LiveDrafting, Source, SourceError
from vllm_nfp.draft.speculative_config import DRAFT_METHODS, LOOK_UPS, NEEDS_MODEL
from vllm_nfp.engine.versions import installed_version
from vllm_nfp.principle.arguments import KV_BITS, MOST_SEQUENCES, WEIGHT_BITS

PREDICTED_BATCH_SIZE = 64
PREDICTED_POSITIONS = 64
PREDICTED_CONTEXTS = "1024,4096,16384"
_URLS = ("http://", "https://")
_SETTINGS = ("max_draft_length", "max_batch_size", "draft_lengths", "epsilon", "slack")
"""Settings whose refusals name them as Python does; here they are flags."""
_UNKNOWN = LiveDrafting(frozenset(), None)
_ADDRESS = re.compile(r"[\w.+-]+:(//|\d+)")
"""What looks like a server's address, but lacks http://."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What the user should know of the inputs."""

    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


@click.command("recommend")
@click.argument("source", required=False)
@click.option("--predicted", metavar="MODEL", help="Predict for this model's config.json instead.")
@click.option("--hardware", metavar="NAME|FILE", help="Device to predict for, as in predict.")
@click.option(
    "--batch-sizes",
    default=None,
    help=f"To predict for [default: powers of 2 to --max-batch-size or {PREDICTED_BATCH_SIZE}].",
)
@click.option(
    "--contexts", default=None, help=f"To choose for [default: all; {PREDICTED_CONTEXTS}]."
)
@click.option("--tensor-parallel-size", "-tp", type=int, help="To predict for.")
@click.option("--attention-backend", help="To predict for [default: vLLM's choice there].")
@click.option("--quantization", type=NameChoice(tuple(WEIGHT_BITS)), help="To predict for.")
@click.option("--kv-cache-dtype", type=NameChoice(tuple(KV_BITS)), help="To predict for.")
@click.option("--calibration", metavar="FILE", help="Hardware file whose constants to take.")
@click.option("--assume-dense", is_flag=True, help="Read an unknown family like Llama's.")
@click.option("--acceptance", type=float, help="Chance that a draft is accepted, each alike.")
@click.option(
    "--acceptance-per-position",
    metavar="A1,A2,...",
    help="Chance of the first, second, ... draft, given those before it.",
)
@click.option(
    "--acceptance-rates",
    metavar="R1,R2,...",
    help="Share of drafts whose first, second, ... token is accepted, as vLLM logs it.",
)
@click.option("--acceptance-from", metavar="URL", help="Read it from this server's counters.")
@click.option(
    "--extend-acceptance",
    is_flag=True,
    help="Take later drafts to be accepted like the last known one; otherwise none are drafted.",
)
@click.option(
    "--draft-method",
    type=NameChoice(DRAFT_METHODS),
    help="How drafts are made [default: as the server of the acceptance does; ngram].",
)
@click.option("--draft-model", metavar="PATH", help="For --speculative-config: its weights.")
@click.option(
    "--draft-cost",
    type=float,
    metavar="SECONDS",
    help="Time of one draft step; ngram: of a step's whole look-up.",
)
@click.option(
    "--draft-share",
    type=float,
    help="The same as a share of the step without drafts, t(1).",
)
@click.option("--max-batch-size", type=int, help="Last of the table [default: largest measured].")
@click.option("--max-draft-length", type=int, help="Longest draft [default: as far as known].")
@click.option(
    "--draft-lengths",
    metavar="K1,K2,...",
    help="What to choose from, besides 0 [default: every length].",
)
@click.option("--epsilon", type=float, default=0.1, show_default=True, help="When drafts are free.")
@click.option(
    "--slack",
    type=float,
    default=DEFAULT_SLACK,
    show_default=True,
    help="Goodput, as a share, given up for a shorter draft.",
)
@click.option(
    "--speculative-config",
    "only_config",
    is_flag=True,
    help="Print only the JSON for vLLM's --speculative-config.",
)
@json_option
def recommend_command(
    source: str | None,
    predicted: str | None,
    hardware: str | None,
    batch_sizes: str | None,
    contexts: str | None,
    tensor_parallel_size: int | None,
    attention_backend: str | None,
    quantization: str | None,
    kv_cache_dtype: str | None,
    calibration: str | None,
    assume_dense: bool,
    acceptance: float | None,
    acceptance_per_position: str | None,
    acceptance_rates: str | None,
    acceptance_from: str | None,
    extend_acceptance: bool,
    draft_method: str | None,
    draft_model: str | None,
    draft_cost: float | None,
    draft_share: float | None,
    max_batch_size: int | None,
    max_draft_length: int | None,
    draft_lengths: str | None,
    epsilon: float,
    slack: float,
    only_config: bool,
    as_json: bool,
) -> None:
    """Recommend draft lengths for speculative decoding, by batch size.

    SOURCE is a profile.json or the URL of a server with --nfp-probe; its step times are used. A
    URL also brings the acceptance, if the server speculates.
    """
    served = {
        "tensor_parallel_size": tensor_parallel_size,
        "attention_backend": attention_backend,
        "quantization": quantization,
        "kv_cache_dtype": kv_cache_dtype,
        "calibration": calibration,
        "assume_dense": assume_dense or None,
    }
    if only_config and as_json:
        raise Refusal("give --json or --speculative-config: the former holds the latter")
    with _refusing():
        if (source is None) == (predicted is None):
            raise Refusal("give one source: a profile.json, a server's URL, or --predicted MODEL")
        lengths = _numbers(draft_lengths, "--draft-lengths")
        servers: tuple[scrape.Samples, ...] = ()
        if source is not None:
            _refuse_with(source, {"hardware": hardware, "batch_sizes": batch_sizes, **served})
            found, told, servers = _measured(source)
        else:
            longest = _Longest(max_batch_size, max((max_draft_length or 0, *(lengths or ()))))
            found = _predicted(predicted, hardware, batch_sizes, contexts, longest, served)
            told = ()
        if acceptance_from is not None:
            servers = (_samples(acceptance_from), *servers)
            told += sources.differences(found, servers[0])
        accepted, acceptance_told = _acceptance(
            acceptance,
            acceptance_per_position,
            acceptance_rates,
            acceptance_from,
            servers,
            draft_method,
        )
        drafting = next(filter(None, map(sources.live_drafting, servers)), _UNKNOWN)
        method = _method(draft_method, drafting, draft_model is not None)
        if method not in LOOK_UPS and draft_cost is None and draft_share is None:
            draft_cost = _live_cost(method, drafting)
        result = recommend(
            found,
            accepted.extended() if extend_acceptance else accepted,
            cost=_cost(method, draft_cost, draft_share),
            max_batch_size=max_batch_size,
            max_draft_length=max_draft_length,
            contexts=() if predicted else _numbers(contexts, "--contexts") or (),
            epsilon=epsilon,
            slack=slack,
            draft_lengths=lengths,
        )
    told += acceptance_told + _version_warnings(found) + _losses(result)
    told += _resting_elsewhere(result) + _without_graphs(result)
    what = _Told(_assumptions(result, method, draft_cost, draft_share), told)
    if only_config:
        _print_config(result, method, draft_model, what)
    elif as_json:
        click.echo(json.dumps(_as_json(result, method, draft_model, what), indent=1))
    else:
        print_lengths(Console(), result, what.assumptions, what.warnings)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what the package cannot use into a refusal."""
    try:
        yield
    except RecommendError as error:
        raise Refusal(_with_flags(str(error))) from None
    except (SourceError, AcceptanceError, scrape.ScrapeError) as error:
        raise Refusal(str(error)) from None


@dataclass(frozen=True, slots=True)
class _Longest:
    """How far a prediction must reach; None: as by default."""

    batch_size: int | None
    draft_length: int

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """1, 2, 4, ... and the last one; one below 1 is refused later."""
        last = max(1, PREDICTED_BATCH_SIZE if self.batch_size is None else self.batch_size)
        return tuple(sorted({2**i for i in range(last.bit_length())} | {last}))

    @property
    def positions(self) -> int:
        """Last N; a length beyond all bounds is refused later."""
        return max(PREDICTED_POSITIONS, min(self.draft_length, LARGEST_DRAFT_LENGTH) + 1)


def _refuse_with(source: str, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if value is not None:
            flag = name.replace("_", "-")
            raise Refusal(f"--{flag} goes with --predicted: {source} was measured with its own")


def _with_flags(text: str) -> str:
    """A refusal that begins with a setting's name, with that of its flag."""
    name, _, rest = text.partition(" ")
    return f"--{name.replace('_', '-')} {rest}" if name in _SETTINGS else text


def _measured(source: str) -> tuple[Source, tuple[str, ...], tuple[scrape.Samples, ...]]:
    """Step times, what to know of them, and the server's metrics, if it is one."""
    if not source.lower().startswith(_URLS):
        if not source or (_ADDRESS.match(source) and not os.path.exists(source)):
            raise Refusal(
                f"{source!r:.80} is no file and no URL: give a profile.json, or a server as in "
                f"http://localhost:8000"
            )
        return sources.from_profile(read_profile(Path(source)), source), (), ()
    samples = _samples(source)
    if "vllm_nfp_state" not in samples:
        raise Refusal(f"{source} has no NFP probe: start the server with --nfp-probe")
    engines = {labels.get("engine") for labels, _ in samples["vllm_nfp_state"]}
    told = (
        f"{source} has {len(engines)} engines: of each step the slowest is taken, and vLLM "
        f"ignores draft lengths by batch size under data parallelism"
    )
    found = sources.from_samples(samples, source, server_version(source))
    return found, (told,) if len(engines) > 1 else (), (samples,)


def _predicted(
    model: str | None,
    hardware: str | None,
    batch_sizes: str | None,
    contexts: str | None,
    longest: _Longest,
    served: Mapping[str, Any],
) -> Source:
    from vllm_nfp.principle import HardwareError, PredictionError, ShapeError
    from vllm_nfp.principle.prediction import predict

    if model is None or hardware is None:
        raise Refusal("--predicted needs --hardware NAME, as in --hardware H100-SXM")
    if batch_sizes is None and not 1 <= (longest.batch_size or 1) <= MOST_SEQUENCES:
        raise Refusal(
            f"--max-batch-size must lie from 1 to {MOST_SEQUENCES} with --predicted, not "
            f"{longest.batch_size}, unless --batch-sizes is given"
        )
    try:
        found = predict(
            model,
            hardware,
            longest.batch_sizes
            if batch_sizes is None
            else _ascending(batch_sizes, "--batch-sizes"),
            _ascending(PREDICTED_CONTEXTS if contexts is None else contexts, "--contexts"),
            max_positions=longest.positions,
            **{name: value for name, value in served.items() if value is not None},
        )
        return sources.from_predictions(found)
    except (HardwareError, PredictionError, ShapeError) as error:
        raise Refusal(str(error)) from None


def _numbers(text: str | None, flag: str) -> tuple[int, ...] | None:
    return None if text is None else parse_list(text, int, flag)


def _ascending(text: str, flag: str) -> tuple[int, ...]:
    return tuple(sorted(set(parse_list(text, int, flag))))


def _samples(url: str) -> scrape.Samples:
    end = scrape.deadline()
    text = scrape.fetch(url)
    try:
        return scrape.find_samples(text, COUNTERS, end)
    except scrape.ScrapeError as error:
        raise Refusal(f"{url} cannot be used: {error}") from None


def _acceptance(
    chance: float | None,
    per_position: str | None,
    rates: str | None,
    given_url: str | None,
    servers: Sequence[scrape.Samples],
    method: str | None,
) -> tuple[Acceptance, tuple[str, ...]]:
    given = [value for value in (chance, per_position, rates, given_url) if value is not None]
    if len(given) > 1:
        raise Refusal(
            "give one of --acceptance, --acceptance-per-position, --acceptance-rates and "
            "--acceptance-from"
        )
    if chance is not None:
        return constant(chance), ()
    if per_position is not None:
        return Acceptance(_shares(per_position, "--acceptance-per-position")), ()
    if rates is not None:
        return from_rates(_shares(rates, "--acceptance-rates")), ()
    if not servers:
        raise Refusal(
            "acceptance is needed: give --acceptance 0.8, one chance for each draft with "
            "--acceptance-per-position, or a speculating server with --acceptance-from URL"
        )
    live = sources.live_acceptance(servers[0])
    told: tuple[str, ...] = () if live.caution is None else (live.caution,)
    drafting = sources.live_drafting(servers[0])
    if method is not None and drafting is not None:
        others = drafting.methods - (LOOK_UPS if method in LOOK_UPS else {method})
        if others:
            made = ", ".join(sorted(others))
            told += (f"acceptance is that of drafts made by {made!r:.60}, not {method}",)
    return live.acceptance, told


def _shares(text: str, flag: str) -> tuple[float, ...]:
    return parse_list(text, float, flag, example="0.9,0.8,0.7")


def _method(given: str | None, drafting: LiveDrafting, has_model: bool) -> str:
    """How drafts are to be made."""
    method = given or sources.served_method(drafting)
    if method not in DRAFT_METHODS:
        raise Refusal(
            f"the server makes its drafts by {method!r:.60}, whose cost is not known here: give "
            f"the --draft-method that comes closest, and --draft-cost"
        )
    if method in LOOK_UPS and has_model:
        raise Refusal(
            f"--draft-model is given, yet {method} looks drafts up, without a model: give the "
            f"--draft-method that it is for, as eagle3, or leave it out"
        )
    return method


def _live_cost(method: str, drafting: LiveDrafting) -> float | None:
    """Time of a drafted token as the server tells it; None if it tells none of this method."""
    if drafting.methods <= {method} and drafting.token_seconds == 0.0:
        raise Refusal(
            f"the server saw no time that a drafted token takes, which {method} cannot do without: "
            f"give --draft-cost SECONDS, or --draft-share"
        )
    cost = sources.served_cost(method, drafting)
    return None if cost is None else cost.seconds_per_token


def _cost(method: str, seconds: float | None, share: float | None) -> DraftCost:
    if seconds is not None and share is not None:
        raise Refusal("give --draft-cost or --draft-share, not both")
    if seconds is None and share is None and method not in LOOK_UPS:
        raise Refusal(
            f"--draft-method {method} needs the cost of a draft step: give --draft-cost SECONDS, "
            f"or --draft-share as a share of the step without drafts (an EAGLE or MTP step runs "
            f"about one of the model's layers and the LM head), or the URL of a server with "
            f"--nfp-draft-control, which tells it once it has tried two lengths"
        )
    try:
        if method in LOOK_UPS:
            return DraftCost(seconds_once=seconds or 0.0, share_once=share or 0.0)
        return DraftCost(seconds_per_token=seconds or 0.0, share_per_token=share or 0.0)
    except ValueError:
        flag, value = ("--draft-share", share) if seconds is None else ("--draft-cost", seconds)
        most = f"at most {LARGEST_DRAFT_COST:g}" if (value or 0) > 0 else "0 or more"
        raise Refusal(f"{flag} must be {most}, not {value:g}") from None


def _vllm_version(source: Source) -> str | None:
    return source.vllm or installed_version()


def _version_warnings(source: Source) -> tuple[str, ...]:
    version = _vllm_version(source)
    if version is None:
        return ()
    told = releases.draft_schedule_refusal(version) or versions.draft_schedule_warning(version)
    return () if told is None else (told,)


def _losses(result: Recommendation) -> tuple[str, ...]:
    """Where a server that speculates is slower than one that does not, whatever it drafts."""
    losing = [
        (row.scheduled_gain, row)
        for row in result.rows
        if row.scheduled_gain is not None and row.scheduled_gain < 1.0
    ]
    if not losing:
        return ()
    worst = min(gain for gain, _ in losing)
    first = min(row.batch_size_first for _, row in losing)
    last = max(row.batch_size_last for _, row in losing)
    return (
        f"at batch sizes {first} to {last} a server that speculates can be slower than one that "
        f"does not ({worst:.2f}x): its drafting model takes every step in, at K = 0 as well; where "
        f"it mostly serves such batches, serve without speculation",
    )


def _resting_elsewhere(result: Recommendation) -> tuple[str, ...]:
    """Where the table drafts at a context whose batches of that size nothing is known of."""
    rows = [row for row in result.rows if row.scheduled_gain is None]
    told = []
    for context in sorted({row.context for row in rows}):
        sizes = ", ".join(size_range(*span) for span in _spans(rows, context))
        told.append(
            f"at context {context} batches of {sizes} were not measured: the table's K there rests "
            f"on the other contexts; if your traffic has such batches, probe them, or choose for "
            f"this context with --contexts {context}"
        )
    return tuple(told)


def _spans(rows: Sequence[ScheduleRow], context: int) -> list[tuple[int, int]]:
    """Batch sizes of the rows at a context, neighbours together."""
    spans: list[tuple[int, int]] = []
    for row in rows:
        if row.context != context:
            continue
        follows = spans and row.batch_size_first == spans[-1][1] + 1
        first = spans.pop()[0] if follows else row.batch_size_first
        spans.append((first, row.batch_size_last))
    return spans


def _without_graphs(result: Recommendation) -> tuple[str, ...]:
    """That the best lengths reach the edge of the CUDA graphs of the server that was measured."""
    best = {
        (row.batch_size_first, row.context): row.draft_length
        for row in result.rows
        if row.basis == "measured"
    }
    edge = []
    for curve in result.source.curves:
        without, found = curve.without_graph_from, best.get((curve.batch_size, curve.context))
        lengths = result.demand.lengths(curve)
        if without is None or found is None or lengths[-1] + 1 < without:
            continue
        if found >= max(k for k in lengths if k + 1 < without):
            edge.append((curve.batch_size, without - 1, curve.batch_size * (lengths[-1] + 1)))
    if not edge:
        return ()
    batch_size, length, _ = min(edge)
    return (
        f"from B={batch_size} with K={length} on, steps ran without a CUDA graph, at the host's "
        f"pace: longer drafts may pay there if vLLM captures graphs of up to "
        f"{max(tokens for *_, tokens in edge)} tokens (max_cudagraph_capture_size in "
        f"--compilation-config)",
    )


def _assumptions(
    result: Recommendation, method: str, seconds: float | None, share: float | None
) -> tuple[str, ...]:
    acceptance = result.demand.acceptance
    if not acceptance.per_position:
        accepted = f"each draft is accepted with chance {acceptance.beyond:g}, wherever it stands"
    else:
        listed = ", ".join(f"{chance:.3g}" for chance in acceptance.per_position[:8])
        more = ", ..." if len(acceptance.per_position) > 8 else ""
        later = (
            f"none beyond {len(acceptance.per_position)} are drafted"
            if acceptance.beyond is None
            else f"later ones with {acceptance.beyond:.3g}"
        )
        accepted = f"drafts are accepted, given those before, with chance {listed}{more}; {later}"
    amount = f"{share or 0:.3g} of t(1)" if seconds is None else f"{seconds * 1e3:.3g} ms"
    cost = (
        f"a look-up takes {amount} a step, however long the draft"
        if method in LOOK_UPS
        else f"each drafted token takes {amount}, at every batch size"
    )
    return (
        accepted,
        f"{method}: {cost}",
        "between measured counts of positions a step costs the dearer of both neighbours, between "
        "measured batch sizes at each count the dearer of both curves; outside the batch sizes "
        "measured at any context K is 0",
        "the sampler's time is not in the step's",
    )


def _config_or_none(
    result: Recommendation, method: str, draft_model: str | None
) -> dict[str, Any] | None:
    version = _vllm_version(result.source)
    if version is not None and releases.draft_schedule_refusal(version) is not None:
        return None
    if not result.schedule.pays or (method in NEEDS_MODEL and draft_model is None):
        return None
    return result.speculative_config(method, draft_model)


def _print_config(
    result: Recommendation, method: str, draft_model: str | None, told: _Told
) -> None:
    version = _vllm_version(result.source)
    refusal = None if version is None else releases.draft_schedule_refusal(version)
    if refusal is not None:
        raise Refusal(refusal)
    if method in NEEDS_MODEL and draft_model is None:
        raise Refusal(f"--draft-method {method} needs --draft-model PATH for --speculative-config")
    try:
        settings = result.speculative_config(method, draft_model)
    except ValueError as error:
        raise Refusal(str(error)) from None
    for warning in told.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(json.dumps(settings))


def _as_json(
    result: Recommendation, method: str, draft_model: str | None, told: _Told
) -> dict[str, Any]:
    return {
        **result.to_dict(),
        "draft_method": method,
        "speculative_config": _config_or_none(result, method, draft_model),
        "assumptions": list(told.assumptions),
        "warnings": list(told.warnings),
    }
