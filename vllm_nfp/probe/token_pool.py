"""The token ids that probes run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vllm_nfp.adapter.attention_groups import CellDoesNotFitError

GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Multiples of it, without their whole parts, lie evenly between 0 and 1, however many they are."""


class TokenPool:
    """Token ids that probes run on: those of recent prompts, random ones until there are any.

    Identical ids would send all tokens to the same experts. The ids of live prompts are routed as
    the server's own traffic is. They never leave the worker.

    Args:
        vocab_size: ids are below this.
        size: ids kept.
    """

    def __init__(self, vocab_size: int, size: int, device: torch.device, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._begin = float(rng.random())
        self._vocab_size = vocab_size
        # Twice over, so that a batch can start anywhere without wrapping.
        self._host = torch.empty(2 * size, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._size = size
        self._fill = 0
        self._device_ids = torch.empty(2 * size, dtype=torch.int32, device=device)
        self._write(0, rng.integers(0, vocab_size, size, dtype=np.int32))
        self._changed = True

    def _write(self, start: int, ids: np.ndarray[Any, Any]) -> None:
        values = torch.from_numpy(ids)
        end = start + len(ids)
        self._host[start:end] = values
        self._host[start + self._size : end + self._size] = values

    def add(self, token_ids: Sequence[int]) -> None:
        """Add (part of) a live prompt; ids out of range are left out."""
        ids = np.asarray(token_ids[: self._size], dtype=np.int64)
        ids = ids[(ids >= 0) & (ids < self._vocab_size)].astype(np.int32)
        first = ids[: self._size - self._fill]
        self._write(self._fill, first)
        rest = ids[len(first) :]
        if len(rest):
            self._write(0, rest)
        self._fill = (self._fill + len(ids)) % self._size
        self._changed = self._changed or len(ids) > 0

    def draw(self, count: int, number: int = 0) -> torch.Tensor:
        """``count`` token ids on the device.

        Args:
            number: draws of the same number begin at the same place, others spread over the pool.
        """
        if self._changed:
            self._device_ids.copy_(self._host, non_blocking=True)
            self._changed = False
        if count > self._size:
            raise CellDoesNotFitError(f"{count} tokens in a step exceed the pool of {self._size}")
        start = int(self._size * ((self._begin + number * GOLDEN_RATIO) % 1.0))
        return self._device_ids[start : start + count]
