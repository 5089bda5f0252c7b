"""vLLM's table of draft lengths by batch size: what may be chosen, and graphs for all of it.

vLLM captures FULL decode graphs for the draft lengths of the configured table alone. A length that
the controller may choose needs them too, so that while vLLM lists what to capture, it is shown a
table that holds every such length.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ConfigError, ProbeConfig
from vllm_nfp.draft.methods import DRAFT_METHODS, MTP_NAMES, ONE_LENGTH, PARALLEL

logger = logging.getLogger("vllm.nfp")

DEFAULT_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
"""What is chosen from unless draft_lengths is given, up to num_speculative_tokens."""
METHODS = tuple(name for name in DRAFT_METHODS if name not in ONE_LENGTH)
"""Draft methods whose drafts follow a length that changes between steps."""
_TABLE = "num_speculative_tokens_per_batch_size"
_SHORT_FLAGS = {
    "spec_method": "method",
    "spec_model": "model",
    "spec_tokens": "num_speculative_tokens",
}
"""vLLM's flags for a single setting of --speculative-config."""
_TWICE = object()
"""A setting is given by a short flag and in --speculative-config: vLLM refuses it."""


def candidate_lengths(
    config: ProbeConfig, num_speculative_tokens: int, static: Sequence[int]
) -> tuple[int, ...]:
    """Draft lengths that the controller may choose, ascending from 0 on.

    Args:
        static: the configured lengths.

    Raises:
        ConfigError: if draft_lengths holds one that is longer than num_speculative_tokens.
    """
    given = config.draft_lengths
    if given and given[-1] > num_speculative_tokens:
        raise ConfigError(
            f"draft_lengths holds {given[-1]}, above num_speculative_tokens "
            f"{num_speculative_tokens}: leave it out, or raise num_speculative_tokens"
        )
    lengths = given or (k for k in DEFAULT_LENGTHS if k <= num_speculative_tokens)
    return tuple(sorted({0, *lengths, *static}))


def control_speculation(args: argparse.Namespace) -> None:
    """Let lengths change under --speculative-config and its short flags.

    They are put together as vLLM does it. Where both name the same setting all is left as it is:
    vLLM refuses.

    Raises:
        ConfigError: if this speculation cannot be controlled; says why and what to do.
    """
    settings = given_speculation(args)
    if settings is _TWICE:
        return
    parallel = vars(args).get("data_parallel_size") or 1
    args.speculative_config = prepare_speculation(settings, parallel)
    for dest in _SHORT_FLAGS:
        setattr(args, dest, None)


def given_speculation(args: argparse.Namespace) -> Any:
    """--speculative-config and its short flags together.

    Returns:
        Any: a mapping; None without speculation; no mapping where vLLM will refuse what was given.
    """
    flags = vars(args)
    settings = flags.get("speculative_config")
    short = {
        name: value for dest, name in _SHORT_FLAGS.items() if (value := flags.get(dest)) is not None
    }
    if isinstance(settings, Mapping) or (settings is None and short):
        given = dict(settings or {})
        if set(given) & set(short):
            return _TWICE
        settings = {str(name).replace("-", "_"): v for name, v in {**given, **short}.items()}
    return settings


def prepare_speculation(settings: Any, data_parallel_size: int) -> Any:
    """The ``--speculative-config`` that lets lengths change, from the one that was given.

    Without a table in it every batch size gets num_speculative_tokens, as before.

    Raises:
        ConfigError: if this speculation cannot be controlled; says why and what to do.
    """
    flag = "--nfp-draft-control"
    if settings is None:
        raise ConfigError(
            f"{flag} chooses draft lengths, but the server drafts nothing: add "
            f"--speculative-config, or leave {flag} out"
        )
    if not isinstance(settings, Mapping) or not isinstance(
        settings.get("num_speculative_tokens"), int
    ):
        raise ConfigError(
            f"{flag} needs num_speculative_tokens, the longest draft, in --speculative-config: "
            f"add it"
        )
    method = settings.get("method")
    if method is not None and (method not in METHODS and method not in MTP_NAMES):
        raise ConfigError(
            f"{flag} does not support the draft method {method!r}; it supports {', '.join(METHODS)}"
        )
    if settings.get("parallel_drafting") and method in PARALLEL:
        raise ConfigError(
            f"{flag} does not support parallel_drafting with {method}, whose passes are made for "
            f"num_speculative_tokens drafts: leave one of the two out"
        )
    if data_parallel_size > 1:
        raise ConfigError(
            f"{flag} does not work with --data-parallel-size {data_parallel_size}, under which "
            f"vLLM keeps one draft length: leave one of the two out"
        )
    if settings.get(_TABLE):
        return settings
    return {**settings, _TABLE: [[1, 1, settings["num_speculative_tokens"]]]}


def covering_table(lengths: Sequence[int], max_num_seqs: int) -> list[list[int]] | None:
    """A table that holds every length, each close to the largest batch; None if too many.

    >>> covering_table([0, 2, 5], 8)
    [[1, 6, 0], [7, 7, 2], [8, 8, 5]]
    """
    if len(lengths) > max_num_seqs:
        return None
    first_end = max_num_seqs - len(lengths) + 1
    rest = [[first_end + i, first_end + i, k] for i, k in enumerate(lengths[1:], start=1)]
    return [[1, first_end, lengths[0]], *rest]


@contextmanager
def _shown(vllm_config: Any, config: ProbeConfig) -> Iterator[None]:
    """While it lasts, the configuration's table holds every length that may be chosen."""
    table = _covering(vllm_config, config)
    if table is None:
        yield
        return
    speculation = vllm_config.speculative_config
    configured = speculation.num_speculative_tokens_per_batch_size
    speculation.num_speculative_tokens_per_batch_size = table
    try:
        yield
    finally:
        speculation.num_speculative_tokens_per_batch_size = configured


def _covering(vllm_config: Any, config: ProbeConfig) -> list[list[int]] | None:
    """A table that holds every length that may be chosen; None if the configured one has to do."""
    try:
        speculation = vllm_config.speculative_config
        table = None if speculation is None else speculation.num_speculative_tokens_per_batch_size
        if not table:
            return None
        longest = speculation.num_speculative_tokens
        lengths = candidate_lengths(config, longest, [k for *_, k in table])
        covering = covering_table(lengths, vllm_config.scheduler_config.max_num_seqs)
    except ConfigError:  # logged when the controller is attached
        return None
    except AttributeError as error:
        logger.warning("vllm-nfp: no CUDA graphs for other draft lengths in this vLLM: %s", error)
        return None
    if covering is None:
        logger.warning(
            "vllm-nfp: max_num_seqs is below the number of draft lengths to choose from; those "
            "outside the configured table have no CUDA graphs"
        )
    return covering


def install_sizes(patches: PatchSet, config: ProbeConfig) -> None:
    """Let vLLM count every length in when it lists the batch widths to capture."""

    def sizes(original: Any) -> Any:
        @functools.wraps(original)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _shown(self, config):
                return original(self, *args, **kwargs)

        return wrapped

    patches.wrap(targets.SET_CUDAGRAPH_SIZES, sizes)


def install_graphs(patches: PatchSet, config: ProbeConfig) -> None:
    """Let the V2 runner's graph managers capture every length; V1 has no FULL graphs for tables."""

    def with_lengths(original: Any) -> Any:
        @functools.wraps(original)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _shown(self.vllm_config, config):
                return original(self, *args, **kwargs)

        return wrapped

    patches.wrap(targets.INIT_CANDIDATES, with_lengths)
    patches.wrap(targets.SPECULATOR_CAPTURE, with_lengths)
