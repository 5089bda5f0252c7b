"""Which ranks of an engine have a probe, and with which settings.

A node may have been started without the probe or with other settings, or, under Ray, lack this
package. Its ranks would never join the others, who would wait for them. So each rank with a probe
leaves a note in the store of vLLM's process group before it warms up. After the warm-up it looks
for the notes of the others. All find the same notes, and decide alike.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vllm_nfp import __version__
from vllm_nfp.config import ProbeConfig

WAIT_SECONDS = 10.0
"""vLLM has all ranks warm up at the same time, so that the notes of those with a probe are there
long before. This is for the delay of that call on its way to another node."""
_LOOK_SECONDS = 0.05


class RanksDifferError(RuntimeError):
    """Not all ranks have the same probe; the message says what differs, and what to do."""


def settings_digest(config: ProbeConfig) -> int:
    """Of the settings that all ranks must have alike: directories may differ between nodes."""
    alike = dataclasses.replace(config, run_dir=None, output_dir=None)
    return zlib.crc32(alike.to_json().encode())


def announce(config: ProbeConfig) -> None:
    """Leave this rank's note, if there are other ranks; waits for none of them."""
    distributed = torch.distributed
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        _store().set(_key(distributed.get_rank()), note_of(config))


def note_of(config: ProbeConfig, version: str = __version__) -> str:
    """What a rank says of its probe: this package's version, and the settings' digest."""
    return f"{version} {settings_digest(config):08x}"


def check_tensor_ranks(wait: float = WAIT_SECONDS) -> None:
    """Look for the notes of the tensor-parallel ranks.

    Args:
        wait: seconds until a rank without a note counts as one without a probe.

    Raises:
        RanksDifferError: if they cannot probe together.
    """
    from vllm.distributed.parallel_state import get_tp_group

    _check(get_tp_group().ranks, wait)


def check_all_ranks(wait: float = WAIT_SECONDS) -> None:
    """Look for the notes of all ranks of all engines that take their steps together.

    Args:
        wait: seconds until a rank without a note counts as one without a probe.

    Raises:
        RanksDifferError: if they cannot probe together.
    """
    from vllm.distributed.parallel_state import get_world_group

    _check(get_world_group().ranks, wait)


def _check(ranks: Sequence[int], wait: float) -> None:
    differs = difference(_notes(ranks, wait))
    if differs is not None:
        raise RanksDifferError(differs)


def difference(notes: Mapping[int, str | None]) -> str | None:
    """What differs between ranks, and what to do; None if nothing does.

    Args:
        notes: of each rank; None for a rank without a probe.
    """
    first = min(notes)
    for rank, note in sorted(notes.items()):
        if note is None:
            return (
                f"rank {rank} has no probe: install vllm-nfp on every node, and start each with "
                f"the same --nfp flags"
            )
        (version, _), (expected, _) = note.split(" "), str(notes[first]).split(" ")
        if version != expected:
            return (
                f"rank {rank} has vllm-nfp {version} and rank {first} has {expected}: install the "
                f"same on every node"
            )
        if note != notes[first]:
            return (
                f"rank {rank} has other probe settings than rank {first}: start every node with "
                f"the same --nfp flags"
            )
    return None


def _notes(ranks: Sequence[int], wait: float) -> dict[int, str | None]:
    deadline = time.monotonic() + wait
    store = _store()
    while not store.check([_key(rank) for rank in ranks]) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return {
        rank: store.get(_key(rank)).decode() if store.check([_key(rank)]) else None
        for rank in ranks
    }


def _key(rank: int) -> str:
    return f"vllm-nfp/rank-{rank}"


def _store() -> Any:
    """The store that vLLM's ranks met at; torch has no public way to it."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
