"""Fits an EAGLE-3 head to a model's own answers, for :mod:`benchmarks.verification.eagle_head`.

The recipe is EAGLE-3's (arXiv 2503.01840): the head reads states of three layers, training unrolls
the draft steps as a server runs them, and the loss is taken with the target's own probabilities.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from benchmarks.verification.eagle_answers import (
    SEED,
    Answer,
    by_length,
    device,
    embedding_of,
    states,
)
from benchmarks.verification.eagle_checkpoint import save
from benchmarks.verification.eagle_model import DECAY, UNROLLED, Head, counted, shape_of

if TYPE_CHECKING:
    from torch import Tensor

MOST_TOKENS = 512
"""Prompt and answer of a sequence of training."""
LEAST_ANSWER = 8
"""Tokens of an answer that is trained on."""
RATE, WARM_UP = 1e-3, 50
"""Of AdamW, and steps until it is reached."""
READING_SHARE = 0.25
"""Most of training's time that the target may take to read the answers."""
LOGGED, TOLD_S = 10, 5.0
"""Steps from one line of ``training.jsonl`` to the next, and seconds between messages."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a batch of answers trains on; the states in 16 bits, as all answers stay in memory."""

    tokens: Tensor
    read: Tensor
    """States of the three layers that the head reads."""
    last: Tensor
    """States of the last layer at the places that count."""
    whole: Tensor
    """Log of the sum over all tokens of what the target gives each, at these places."""
    counts: Tensor
    """Where the token after is an answer's."""


def learning_rate(step: int, share: float) -> float:
    """Warm-up, then a straight line to nothing.

    Args:
        share: of training that is over, 0 to 1.
    """
    return RATE * min(1.0, (step + 1) / WARM_UP) * (1.0 - share)


def train_head(
    target: Any, answered: Sequence[Answer], out: Path, fit: tuple[int, int, int], seconds: float
) -> None:
    """Fit a head to the answers, and write it to ``head`` after each epoch and at the end.

    Args:
        fit: tokens that the head can draft, epochs, and sequences of a step.
        seconds: it ends after these, however many epochs are left.
    """
    vocabulary, epochs, size = fit
    began = time.monotonic()
    torch.manual_seed(SEED)
    head = _new_head(target, answered, vocabulary)
    long_enough = [one for one in answered if len(one[1]) > LEAST_ANSWER]
    features = _all_features(target, head, by_length(long_enough, size), seconds * READING_SHARE)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=RATE, betas=(0.9, 0.95), fused=device() == "cuda"
    )
    steps, started = epochs * len(features), time.monotonic()
    allowed, told = seconds - (started - began), started
    order = random.Random(SEED)
    with (out / "training.jsonl").open("w", encoding="utf-8") as file:
        for number in range(steps):
            passed = time.monotonic() - started
            if passed >= allowed:
                break
            place = number % len(features)
            if place == 0:
                order.shuffle(features)
            share = max(number / steps, passed / allowed)
            optimizer.param_groups[0]["lr"] = learning_rate(number, share)
            losses = _step(head, optimizer, features[place])
            if number % LOGGED == 0:  # reading the losses waits for the GPU
                row = {
                    "step": number,
                    "losses": [round(loss, 4) for loss in losses.tolist()],
                    "seconds": round(passed, 1),
                }
                file.write(json.dumps(row) + "\n")
                file.flush()
                if time.monotonic() - told > TOLD_S:
                    told = time.monotonic()
                    click.echo(f"step {number}, epoch {number / len(features):.1f}: {row}")
            if place == len(features) - 1:  # a run may be stopped after any epoch
                save(head, out / "head")
        else:
            number = steps
    save(head, out / "head")
    click.echo(f"{number} steps, {number / len(features):.1f} epochs of {len(features)} batches")


def _step(head: Head, optimizer: torch.optim.Optimizer, batch: Features) -> Tensor:
    """One step of training; the losses of the unrolled draft steps."""
    with torch.no_grad():
        logits = batch.last.float() @ head.embedding[head.drafted].T
        wanted = (logits - batch.whole[:, None]).exp()
    losses = head.losses(batch.tokens, batch.read.float(), wanted, batch.counts)
    optimizer.zero_grad()
    (losses * _weights()).sum().backward()
    torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    optimizer.step()
    return losses.detach()


def _weights() -> Tensor:
    return torch.tensor([DECAY**i for i in range(UNROLLED)], device=device())


def _new_head(target: Any, answered: Sequence[Answer], vocabulary: int) -> Head:
    """A head that can draft the most frequent tokens of the answers."""
    common = Counter(token for _, answer in answered for token in answer)
    drafted = torch.tensor(sorted(token for token, _ in common.most_common(vocabulary)))
    shape = shape_of(target.config, len(drafted))
    head = Head(shape, embedding_of(target), drafted.to(device()))
    head.to(device())
    return head


def _all_features(
    target: Any, head: Head, batches: list[list[Answer]], seconds: float
) -> list[Features]:
    """Those of all batches, or of as many at random as so many seconds allow."""
    random.Random(SEED).shuffle(batches)
    began, found = time.monotonic(), []
    for batch in batches:
        found.append(_features(target, head, batch))
        if time.monotonic() - began > seconds:
            break
    passed = time.monotonic() - began
    tokens = sum(len(one.last) for one in found)
    share = len(found) / len(batches)
    click.echo(f"{tokens} tokens of {share:.0%} of the answers are read after {passed:.0f} s")
    return found


def _features(target: Any, head: Head, batch: Sequence[Answer]) -> Features:
    length = min(MOST_TOKENS, max(len(prompt) + len(answer) for prompt, answer in batch))
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    counts = torch.zeros(len(batch), length)
    for row, (prompt, answer) in enumerate(batch):
        ids = (prompt + answer)[:length]
        tokens[row, : len(ids)] = torch.tensor(ids)
        counts[row, len(prompt) - 1 : len(ids) - 1] = 1.0
    tokens, counts = tokens.to(device()), counts.to(device())
    read, last = states(target, head.shape.layers, tokens)
    rows, columns = counted(counts)
    last = last[rows, columns + 1].bfloat16()
    whole = (last.float() @ head.embedding.T).logsumexp(-1)
    return Features(tokens, read.bfloat16(), last, whole, counts)
