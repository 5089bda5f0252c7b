"""Trains a one-layer EAGLE-3 head for a small real model, and records how its drafts fare.

    python -m benchmarks.eagle_head --model DIR --out DIR

It has three parts, each of which can run alone (``--part``): ``generate`` lets the model answer
prompts over chat, code and copying; ``train`` fits the head to these answers, and writes it as vLLM
serves it; ``record`` writes ``traces.npz`` (:mod:`benchmarks.traces`): at each position of greedy
answers to prompts that the head has not seen, its confidences and how many of its drafts are
accepted. A Llama model with tied embeddings is expected. vLLM is not needed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from benchmarks import environment
from benchmarks.eagle_answers import Answer, answers, by_length, device, load_target, states
from benchmarks.eagle_checkpoint import load, save
from benchmarks.eagle_model import DECAY, UNROLLED, Head, shape_of
from benchmarks.eagle_prompts import TASKS, prompts
from benchmarks.eagle_record import record_answers
from benchmarks.traces import (
    acceptance_by_position,
    by_confidence,
    tokens_per_step,
    write_traces,
)

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("generate", "train", "record")
LONGEST_DRAFT = 7
MOST_TOKENS = 512
"""Prompt and answer of a sequence of training."""
LEAST_ANSWER = 8
"""Tokens of an answer that is trained on."""
RATE, WARM_UP, SEED = 1e-3, 20, 0
TEMPERATURE = 0.8
"""Of the answers that are trained on; the recorded ones are greedy."""
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
"""Of the confidences that are summed up at the end."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is generated, trained and recorded."""

    prompts: int
    """For each task."""
    samples: int
    """Answers to each prompt."""
    answer_tokens: int
    vocabulary: int
    epochs: int
    batch: int
    recorded: int
    """Requests for each task."""
    recorded_tokens: int


def generate(target: Any, model: Path, out: Path, sizes: Sizes) -> None:
    """Write the model's own answers: a line of [prompt ids, answer ids] for each."""
    torch.manual_seed(SEED)
    texts = [text for task in TASKS for text in prompts(task, sizes.prompts, held_out=False)]
    made = answers(
        target, model, texts, sizes.answer_tokens, temperature=TEMPERATURE, samples=sizes.samples
    )
    with (out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for one in made:
            file.write(json.dumps(one) + "\n")


def train(target: Any, model: Path, out: Path, sizes: Sizes) -> None:
    """Fit a head to the answers, and write it to ``head`` after each epoch."""
    torch.manual_seed(SEED)
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answered = [json.loads(line) for line in lines]
    head = _new_head(target, answered, sizes.vocabulary)
    long_enough = [one for one in answered if len(one[1]) > LEAST_ANSWER]
    batches = by_length(long_enough, sizes.batch)
    features = [_features(target, head, batch) for batch in batches]
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, betas=(0.9, 0.95))
    weights = torch.tensor([DECAY**i for i in range(UNROLLED)], device=device())
    rows = head.embedding[head.drafted].T
    steps, began = sizes.epochs * len(batches), time.monotonic()
    order = torch.Generator().manual_seed(SEED)
    with (out / "training.jsonl").open("w", encoding="utf-8") as file:
        for number in range(steps):
            if number % len(batches) == 0:
                places = torch.randperm(len(batches), generator=order).tolist()
            rate = min(1.0, (number + 1) / WARM_UP) * (1.0 - 0.9 * number / steps)
            optimizer.param_groups[0]["lr"] = RATE * rate
            tokens, read, last, counts = features[places[number % len(batches)]]
            with torch.no_grad():
                wanted = (last.float() @ rows).softmax(-1)
            losses = head.losses(tokens, read.float(), wanted, counts)
            optimizer.zero_grad()
            (losses * weights).sum().backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            row = {
                "step": number,
                "losses": [round(loss, 4) for loss in losses.tolist()],
                "seconds": round(time.monotonic() - began, 1),
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            if (number + 1) % len(batches) == 0:  # a run may be stopped after any epoch
                save(head, out / "head")


def _new_head(target: Any, answered: Sequence[Answer], vocabulary: int) -> Head:
    """A head that can draft the most frequent tokens of the answers."""
    common = Counter(token for _, answer in answered for token in answer)
    drafted = torch.tensor(sorted(token for token, _ in common.most_common(vocabulary)))
    embedding = target.get_input_embeddings().weight.detach()
    shape = shape_of(target.config, len(drafted))
    head = Head(shape, embedding, drafted.to(device()))
    head.to(device())
    return head


def _features(
    target: Any, head: Head, batch: Sequence[Answer]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, the states that the head reads, the last ones, and where the token after counts."""
    length = min(MOST_TOKENS, max(len(prompt) + len(answer) for prompt, answer in batch))
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    counts = torch.zeros(len(batch), length)
    for row, (prompt, answer) in enumerate(batch):
        ids = (prompt + answer)[:length]
        tokens[row, : len(ids)] = torch.tensor(ids)
        counts[row, len(prompt) - 1 : len(ids) - 1] = 1.0
    tokens, counts = tokens.to(device()), counts.to(device())
    read, last = states(target, head.shape.layers, tokens)
    # 16 bits: the states of all answers stay in memory.
    return tokens, read.bfloat16(), last.bfloat16(), counts


def record(target: Any, model: Path, out: Path, sizes: Sizes) -> None:
    """Write the traces, and say what they hold."""
    head = load(out / "head", target)
    found = []
    for task in TASKS:
        texts = prompts(task, sizes.recorded, held_out=True)
        answered = list(answers(target, model, texts, sizes.recorded_tokens))
        traces = record_answers(target, head, answered, task, LONGEST_DRAFT)
        found += traces
        lengths = {k: round(tokens_per_step(traces, k), 2) for k in range(1, LONGEST_DRAFT + 1)}
        click.echo(f"{task}: {len(traces)} answers; tokens of a step by draft length: {lengths}")
        accepted = [round(share, 3) for share in acceptance_by_position(traces)]
        click.echo(f"  accepted by position: {accepted}; by confidence:")
        click.echo(f"  {by_confidence(traces, EDGES)}")
    write_traces(out / "traces.npz", found, environment.record())


@click.command()
@click.option("--model", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--part", type=click.Choice(PARTS), help="One part alone [default: all].")
@click.option("--prompts", "number", default=500, show_default=True, help="For each task.")
@click.option("--samples", default=1, show_default=True, help="Answers to each prompt.")
@click.option("--answer-tokens", default=256, show_default=True)
@click.option("--vocabulary", default=16384, show_default=True, help="Tokens it can draft.")
@click.option("--epochs", default=8, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Sequences of a training step.")
@click.option("--recorded", default=24, show_default=True, help="Requests for each task.")
@click.option("--recorded-tokens", default=256, show_default=True)
def main(model: Path, out: Path, part: str | None, number: int, **sizes: int) -> None:
    """Train a head and record its drafts; see the module's text."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    target = load_target(model)
    parts = {"generate": generate, "train": train, "record": record}
    for name in PARTS if part is None else (part,):
        began = time.monotonic()
        parts[name](target, model, out, Sizes(number, **sizes))
        click.echo(f"{name}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
