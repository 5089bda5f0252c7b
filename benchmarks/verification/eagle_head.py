"""Trains a one-layer EAGLE-3 head for a small real model, and records how its drafts fare.

    python -m benchmarks.verification.eagle_head --model DIR --out DIR

It has three parts, each of which can run alone (``--part``): ``generate`` lets the model answer
prompts over chat, code and copying; ``train`` fits the head to these answers, and writes it as vLLM
serves it; ``record`` writes ``traces.npz`` (:mod:`benchmarks.serving.traces`): at each position of
greedy answers to prompts that the head has not seen, its confidences and how many of its drafts are
accepted. A Llama model with tied embeddings is expected. vLLM is not needed.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.hosts import environment
from benchmarks.serving.eagle_prompts import TASKS, prompts
from benchmarks.serving.traces import (
    AnswerTrace,
    acceptance_by_position,
    by_confidence,
    tokens_per_step,
    write_traces,
)
from benchmarks.verification.eagle_answers import SEED, Answer, answers, load_target, prompt_ids
from benchmarks.verification.eagle_checkpoint import load
from benchmarks.verification.eagle_record import record_answers
from benchmarks.verification.eagle_train import train_head

PARTS = ("generate", "train", "record")
LONGEST_DRAFT = 7
TEMPERATURE = 0.8
"""Of the answers that are trained on beside greedy ones; the recorded ones are greedy."""
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
"""Of the confidences that are summed up at the end."""
ENDS = {"generate": 0.4, "train": 0.88, "record": 1.0}
"""Share of ``--within`` at which a part ends. Recording runs to its end, however long it takes."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The time that all parts together may take."""

    began: float
    within: float
    """Seconds; infinite without a limit."""

    def left(self, part: str) -> float:
        """Seconds until this part should end."""
        return self.began + ENDS[part] * self.within - time.monotonic()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is generated, trained and recorded."""

    prompts: int
    """For each task."""
    samples: int
    """Sampled answers to each prompt, beside a greedy one."""
    answer_tokens: int
    vocabulary: int
    epochs: int
    batch: int
    recorded: int
    """Requests for each task."""
    recorded_tokens: int


def generate(target: Any, model: Path, out: Path, sizes: Sizes, clock: Clock) -> None:
    """Write the model's own answers: a line of [prompt ids, answer ids] for each."""
    torch.manual_seed(SEED)
    count = tokens = 0
    with (out / "answers.jsonl").open("w", encoding="utf-8") as file:
        began = time.monotonic()
        for part in _answered(target, model, sizes):
            file.writelines(json.dumps(one) + "\n" for one in part)
            count += len(part)
            tokens += sum(len(answer) for _, answer in part)
            took, began = time.monotonic() - began, time.monotonic()
            click.echo(
                f"{count} answers of {tokens} tokens; the last {len(part)} took {took:.1f} s"
            )
            if clock.left("generate") < took:  # the next ones take about as long
                break


def _answered(target: Any, model: Path, sizes: Sizes) -> Iterator[list[Answer]]:
    """A greedy answer to each prompt, as are the recorded ones, then sampled ones."""
    texts = [text for task in TASKS for text in prompts(task, sizes.prompts, held_out=False)]
    greedy = answers(target, model, texts, sizes.answer_tokens)
    if not sizes.samples:
        return greedy
    sampled = answers(
        target, model, texts, sizes.answer_tokens, temperature=TEMPERATURE, samples=sizes.samples
    )
    return itertools.chain(greedy, sampled)


def train(target: Any, _: Path, out: Path, sizes: Sizes, clock: Clock) -> None:
    """Fit a head to the answers."""
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answered = [json.loads(line) for line in lines]
    fit = sizes.vocabulary, sizes.epochs, sizes.batch
    train_head(target, answered, out, fit, clock.left("train"))


def record(target: Any, model: Path, out: Path, sizes: Sizes, _: Clock) -> None:
    """Write the traces, and say what they hold."""
    head = load(out / "head", target)
    texts = {task: prompts(task, sizes.recorded, held_out=True) for task in TASKS}
    # All tasks are answered together: a GPU needs about as long for one alone.
    every = list(itertools.chain.from_iterable(texts.values()))
    made = itertools.chain.from_iterable(answers(target, model, every, sizes.recorded_tokens))
    by_prompt = {tuple(prompt): answer for prompt, answer in made}
    click.echo(f"{len(by_prompt)} answers are recorded")
    found = []
    for task in TASKS:
        asked = prompt_ids(model, texts[task])
        answered = [(ids, by_prompt[tuple(ids)]) for ids in asked]
        traces = record_answers(target, head, answered, task, LONGEST_DRAFT)
        found += traces
        _summarize(task, traces)
    write_traces(out / "traces.npz", found, environment.record())


def _summarize(task: str, traces: list[AnswerTrace]) -> None:
    lengths = {k: round(tokens_per_step(traces, k), 2) for k in range(1, LONGEST_DRAFT + 1)}
    click.echo(f"{task}: {len(traces)} answers; tokens of a step by draft length: {lengths}")
    accepted = [round(share, 3) for share in acceptance_by_position(traces)]
    click.echo(f"  accepted by position: {accepted}; by confidence:")
    click.echo(f"  {by_confidence(traces, EDGES)}")


@click.command()
@click.option("--model", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--part", type=click.Choice(PARTS), help="One part alone [default: all].")
@click.option("--prompts", "number", default=500, show_default=True, help="For each task.")
@click.option("--samples", default=1, show_default=True, help="Sampled, beside a greedy answer.")
@click.option("--answer-tokens", default=256, show_default=True)
@click.option("--vocabulary", default=16384, show_default=True, help="Tokens it can draft.")
@click.option("--epochs", default=8, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Sequences of a training step.")
@click.option("--recorded", default=24, show_default=True, help="Requests for each task.")
@click.option("--recorded-tokens", default=256, show_default=True)
@click.option("--within", default=math.inf, help="Seconds for all parts [default: no limit].")
def main(
    model: Path, out: Path, part: str | None, number: int, within: float, **sizes: int
) -> None:
    """Train a head and record its drafts; see the module's text."""
    clock = Clock(time.monotonic(), within)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    target = load_target(model)
    parts = {"generate": generate, "train": train, "record": record}
    for name in PARTS if part is None else (part,):
        began = time.monotonic()
        parts[name](target, model, out, Sizes(number, **sizes), clock)
        click.echo(f"{name}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
