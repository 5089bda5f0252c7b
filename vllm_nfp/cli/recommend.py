"""``vllm-nfp recommend``: draft lengths by batch size, from measured or predicted step times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vllm_nfp.cli.common import NameChoice, Refusal, json_option
from vllm_nfp.cli.options import (
    EPSILON_HELP,
    HARDWARE_HELP,
    acceptance_options,
    numbers,
    prediction_options,
    with_flag,
)
from vllm_nfp.cli.recommend_acceptance import given_acceptance
from vllm_nfp.cli.recommend_source import (
    PREDICTED_BATCH_SIZE,
    PREDICTED_CONTEXTS,
    check_measured,
    measured_times,
    predicted_times,
)
from vllm_nfp.cli.recommend_table import print_lengths
from vllm_nfp.cli.recommend_usual import print_usual, usual_json
from vllm_nfp.cli.terminal import Console
from vllm_nfp.draft.acceptance import (
    AcceptanceError,
    NoAcceptanceError,
)
from vllm_nfp.draft.demand import DEFAULT_SLACK
from vllm_nfp.draft.methods import DRAFT_METHODS, NEEDS_MODEL, known_method
from vllm_nfp.draft.recommend import RecommendError, recommend
from vllm_nfp.draft.recommendation import Recommendation
from vllm_nfp.draft.server_drafts import NoDraftsError
from vllm_nfp.draft.sources import SourceError
from vllm_nfp.draft.typical import USUAL
from vllm_nfp.results.fetching import ScrapeError

if TYPE_CHECKING:
    from vllm_nfp.draft.inputs import StepTimes


class MethodChoice(NameChoice):
    """Draft methods; vLLM's older names of mtp, such as deepseek_mtp, count as mtp."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as documented."""
        return known_method(str(value)) or super().convert(value, param, ctx)


@click.command("recommend")
@click.argument("source", required=False)
@click.option(
    "--predicted",
    metavar="MODEL",
    help="Predict the step times of this model: a directory with a config.json, the file, a "
    "repository in the Hugging Face cache, or an example such as qwen3-8b.",
)
@click.option("--hardware", metavar="NAME|FILE", help=HARDWARE_HELP)
@click.option(
    "--batch-sizes",
    default=None,
    help=f"Batch sizes to predict, only with --predicted [default: powers of 2 up to "
    f"--max-batch-size or {PREDICTED_BATCH_SIZE}].",
)
@click.option(
    "--contexts",
    default=None,
    help=f"Contexts in tokens that the table covers [default: all measured; predicted: "
    f"{PREDICTED_CONTEXTS}].",
)
@prediction_options
@acceptance_options
@click.option(
    "--extend-acceptance",
    is_flag=True,
    help="Reuse the last acceptance value for later tokens; otherwise no more are drafted.",
)
@click.option(
    "--draft-method",
    type=MethodChoice(DRAFT_METHODS),
    help="How drafts are made [default: as the server drafts; otherwise ngram].",
)
@click.option(
    "--parallel-drafting",
    is_flag=True,
    help="One pass of the drafter makes all drafts (P-EAGLE, PARD).",
)
@click.option(
    "--draft-model", metavar="PATH", help="Weights of the draft model, for --speculative-config."
)
@click.option(
    "--draft-cost",
    type=float,
    metavar="SECONDS",
    help="Seconds of one draft step; of a step's whole lookup or pass with ngram, ngram_gpu, "
    "suffix, dflash, dspark and --parallel-drafting.",
)
@click.option(
    "--draft-share",
    type=float,
    help="Draft cost as a fraction of a step without drafts, e.g. 0.05 (instead of --draft-cost).",
)
@click.option(
    "--max-batch-size",
    type=int,
    help="Last batch size of the table [default: the largest measured].",
)
@click.option(
    "--max-draft-length",
    type=int,
    help="Longest draft [default: as far as times and acceptance are known].",
)
@click.option(
    "--draft-lengths",
    metavar="K1,K2,...",
    help="Draft lengths to choose from, besides 0 [default: every length].",
)
@click.option(
    "--running",
    type=int,
    metavar="K",
    help="Draft length that you run now, to compare with [default: as the server says].",
)
@click.option(
    "--adaptive-verification",
    is_flag=True,
    help="Say how many tokens to draft with enable_adaptive_verification too [default: if the "
    "server verifies adaptively].",
)
@click.option("--epsilon", type=float, default=0.1, show_default=True, help=EPSILON_HELP)
@click.option(
    "--slack",
    type=float,
    default=DEFAULT_SLACK,
    show_default=True,
    help="Prefer the shortest K within this fraction of the best throughput.",
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
    served: Mapping[str, Any],
    acceptance: Mapping[str, Any],
    draft_lengths: str | None,
    only_config: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Recommend draft lengths for speculative decoding, by batch size.

    SOURCE is a profile.json, or the URL of a server with --nfp-probe: its step times are used. The
    URL of a server that speculates also gives the acceptance.
    """
    if only_config and as_json:
        raise Refusal("give --json or --speculative-config: --json contains the configuration")
    if (source is None) == (predicted is None):
        raise Refusal("give one source: a profile.json, a server's URL, or --predicted MODEL")
    settings["draft_lengths"] = numbers(draft_lengths, "--draft-lengths")
    with _refusing():
        times: StepTimes
        if source is not None:
            check_measured(source, served)
            times = measured_times(source)
            settings["contexts"] = numbers(contexts, "--contexts") or ()
        else:
            times = predicted_times(predicted, hardware, batch_sizes, contexts, served, settings)
        settings |= {**given_acceptance(acceptance), "vllm": _installed_vllm()}
        try:
            found = recommend(times, **settings)
        except (NoAcceptanceError, NoDraftsError) as error:
            if only_config or given_acceptance(acceptance):
                raise
            _show_usual(times, settings, error, as_json)
            return
    if only_config:
        _print_config(found)
    elif as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        print_lengths(Console(), found)


def _show_usual(
    times: StepTimes, settings: Mapping[str, Any], why: Exception, as_json: bool
) -> None:
    """Draft lengths at usual acceptances, in place of an answer that needs one.

    Args:
        why: no acceptance is known.
    """
    each = {usual: recommend(times, usual, **settings) for usual in USUAL}
    if as_json:
        click.echo(json.dumps(usual_json(each, str(why)), indent=1))
    else:
        of_server = isinstance(why, NoDraftsError)  # else nothing was asked, as the table says
        print_usual(Console(), each, str(why) if of_server else "")


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn input that the package cannot use into a refusal."""
    try:
        yield
    except (RecommendError, AcceptanceError) as error:
        raise Refusal(with_flag(str(error))) from None
    except (SourceError, ScrapeError) as error:
        raise Refusal(str(error)) from None


def _installed_vllm() -> str | None:
    from vllm_nfp.adapter.versions import installed_version

    return installed_version()


def _print_config(found: Recommendation) -> None:
    if found.refusal is not None:
        raise Refusal(found.refusal)
    if found.method in NEEDS_MODEL and found.draft_model is None:
        raise Refusal(
            f"--draft-method {found.method} needs --draft-model PATH for --speculative-config"
        )
    try:
        settings = found.speculative_config()
    except ValueError as error:
        raise Refusal(str(error)) from None
    for warning in found.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(json.dumps(settings))
