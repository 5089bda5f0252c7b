"""Proof that a probe leaves every byte of the KV cache as it was.

The whole cache is summed up at the start, before any request and again after all that runs then.
Between real steps, which write the cache themselves, a proof lies on the stream closely around a
single run, and looks at the blocks that a stray write could hit: the last ones that each sequence
of the run reads (where keys and values of its positions would go), the null block, the pool's last
block (where a slot of -1 would go if it were taken for a number), and some others. Of layers with a
recurrent state it looks at the server's states of the same numbers as those that the run writes.

Where a KV connector is at work, blocks that it loads may arrive around the run. There a proof sums
the blocks once more before the run: if these two sums differ, blocks are arriving, and the proof
says nothing. If they agree and the sums after the run differ, that is held against the probe only
when it happens :data:`MOST_DOUBTS` times to the same kind of run, since a load may have begun in
between. Until its proof holds, the next run of that kind is proven again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.state_layers import StateGroup
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.kv_sums import SomeBlocks, addressed, always_of, block_sums
from vllm_nfp.probe.states import ProbeStates
from vllm_nfp.timing import Clock, Mark

logger = logging.getLogger("vllm.nfp")

MOST_TAILS = 64
"""Last blocks of sequences that a proof looks at; of more, evenly spread ones."""
MOST_LAYERS = 8
"""Layers of a group that one proof looks at; the next one looks at the next ones. With pages of
64 KiB (8 KV heads of 128, bf16, 16 tokens) a proof reads 40 MiB before and after the run."""


MOST_DOUBTS = 3
"""Proofs of a kind of run that must fail, beside a KV connector, to be held against the probe. A
load would have to begin within the run, and to reach one of the few blocks looked at, each time."""

Run = tuple[int, int, bool]
"""(batch size, positions, as a graph): a kind of run."""


class KvCacheWrittenError(RuntimeError):
    """A probe changed the KV cache: the attention backend ignores padding slots."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} changed the KV cache: this attention backend writes padding slots, or a layer "
            f"the server's recurrent state. What requests have stored there may be wrong since "
            f"then: restart the server if it has served any"
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """Sums before and after a run, on their way to the host."""

    what: str
    before: torch.Tensor
    after: torch.Tensor
    mark: Mark
    """Passed once all are there."""
    run: Run
    earlier: torch.Tensor | None = None
    """Before the first: differs from it where others write; None: nobody else does."""

    @property
    def holds(self) -> bool:
        """Whether the run has changed nothing. To be asked once the mark is passed."""
        return bool(torch.equal(self.before, self.after))

    @property
    def quiet(self) -> bool:
        """Whether nobody else was seen to write. To be asked once the mark is passed."""
        return self.earlier is None or bool(torch.equal(self.earlier, self.before))


class Prover:
    """Makes proofs around single runs; waits for nothing.

    Args:
        contexts: vLLM's map from a layer's name to its module.
        groups: the layers' groups.
        clock: marks the stream.
        transfers: a KV connector may write to the cache at any time.
        states: what layers with a recurrent state work on; the server's own are watched.
    """

    def __init__(
        self,
        contexts: Mapping[str, Any],
        groups: Sequence[AttentionGroup],
        clock: Clock,
        device: torch.device,
        transfers: bool = False,
        states: ProbeStates | None = None,
    ) -> None:
        self._clock = clock
        self._device = device
        self._transfers = transfers
        self._states = states
        self._turn = 0
        self._proven: set[Run] = set()
        """Runs of which one was, or is being, proven."""
        self._doubts: Counter[Run] = Counter()
        self._under_way: list[Proof] = []
        """Proofs that no ticket carries."""
        self._groups = groups
        self._live_states = () if states is None else states.groups
        watched: list[AttentionGroup | StateGroup] = [*groups, *self._live_states]
        self._caches = [
            [
                cache
                for name in group.layer_names
                for cache in addressed(contexts[name], group.num_blocks)
            ]
            for group in watched
        ]
        self._always = [always_of(group.num_blocks) for group in watched]
        for group, caches in zip(watched, self._caches, strict=True):
            if not caches:
                logger.warning(
                    "vllm-nfp: the KV cache of %s has no dimension of %d blocks: it is proven to "
                    "be kept at the start alone",
                    group.layer_names[0],
                    group.num_blocks,
                )

    def begin(self, batch: ProbeBatch, context: int, as_graph: bool = False) -> Proving:
        """Enqueue the sums before a run.

        Args:
            context: tokens in each sequence's cache, as the batch is filled.
            as_graph: the run is the replay of a CUDA graph.
        """
        run = _run_of(batch, as_graph)
        looked_at = list(self._looked_at(batch, context))
        proving = Proving(self._clock, self._device, looked_at, run, self._transfers)
        self._turn += 1
        return proving

    def begin_if_first(self, batch: ProbeBatch, context: int, as_graph: bool) -> Proving | None:
        """Enqueue the sums before a run if it is the first of its kind; None if it is not.

        Args:
            as_graph: the run is the replay of a CUDA graph.
        """
        run = _run_of(batch, as_graph)
        if run in self._proven:
            return None
        self._proven.add(run)
        return self.begin(batch, context, as_graph)

    def watch(self, proof: Proof) -> None:
        """Judge a proof at a later :meth:`check`, once its sums are there."""
        self._under_way.append(proof)

    def check(self) -> None:
        """Judge the watched proofs whose sums are there; waits for nothing.

        Raises:
            KvCacheWrittenError: if a run has changed the KV cache.
        """
        while self._under_way and self._clock.ready(self._under_way[0].mark):
            self.judge(self._under_way.pop(0))

    def judge(self, proof: Proof) -> None:
        """Compare the sums of a proof whose mark is passed.

        Raises:
            KvCacheWrittenError: if the run has changed the KV cache.
        """
        self._clock.release(proof.mark)
        if proof.holds:
            return
        self._doubts[proof.run] += proof.quiet
        if not self._transfers or self._doubts[proof.run] >= MOST_DOUBTS:
            raise KvCacheWrittenError(proof.what)
        self._proven.discard(proof.run)

    def _looked_at(self, batch: ProbeBatch, context: int) -> Iterator[SomeBlocks]:
        tails = [*self._tails(batch, context), *self._stray_states(batch)]
        for caches, always, stray in zip(self._caches, self._always, tails, strict=True):
            if not caches:
                continue
            blocks = np.concatenate([always, stray[:: max(1, -(-len(stray) // MOST_TAILS))]])
            for step in range(min(MOST_LAYERS, len(caches))):
                # Evenly through the layers, others at each turn.
                place = step * len(caches) // min(MOST_LAYERS, len(caches)) + self._turn
                yield caches[place % len(caches)], blocks

    def _tails(self, batch: ProbeBatch, context: int) -> Iterator[np.ndarray[Any, Any]]:
        """The last blocks that the sequences read, in each group."""
        for group, read in zip(self._groups, batch.blocks, strict=True):
            first = context // group.block_tokens
            last = (context + batch.positions_per_sequence - 1) // group.block_tokens
            yield read[:, first : last + 1].reshape(-1)

    def _stray_states(self, batch: ProbeBatch) -> Iterator[np.ndarray[Any, Any]]:
        """Live states of the numbers that the run writes: hit if a layer worked on the server's."""
        if self._states is None:
            return
        written = self._states.numbers(batch.batch_size, batch.positions_per_sequence)
        for group in self._live_states:
            yield np.arange(written.start, min(written.stop, group.num_blocks), dtype=np.int64)


class Proving:
    """A proof that has begun; the run follows, then :meth:`end`."""

    def __init__(
        self,
        clock: Clock,
        device: torch.device,
        looked_at: Sequence[SomeBlocks],
        run: Run,
        transfers: bool,
    ) -> None:
        self._clock = clock
        self._device = device
        self._looked_at = looked_at
        self._run = run
        self._earlier = block_sums(looked_at, device) if transfers else None
        self._before = block_sums(looked_at, device)

    def end(self, what: str) -> Proof:
        """Enqueue the sums after the run.

        Args:
            what: names the run in the error.
        """
        after = block_sums(self._looked_at, self._device)
        return Proof(what, self._before, after, self._clock.mark(), self._run, self._earlier)


def _run_of(batch: ProbeBatch, as_graph: bool) -> Run:
    return batch.batch_size, batch.positions_per_sequence, as_graph
