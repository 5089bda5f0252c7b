"""Trains a one-layer EAGLE-3 head for a small real model, and records how its drafts fare.

    python -m benchmarks.eagle_head --model DIR --out DIR

It has three parts, each of which can run alone (``--part``), in a process of its own: ``generate``
lets the model answer prompts over chat, code and copying; ``train`` fits the head to these answers;
``record`` serves both with vLLM and writes ``traces.jsonl.gz`` of prompts that the head has not
seen: for each request and step the head's confidence in each drafted token, and how many were
accepted. :mod:`benchmarks.traces` reads the file. A Llama model with tied embeddings is expected.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import environment
from benchmarks.eagle_prompts import TASKS, prompts
from benchmarks.traces import RequestTrace, StepTrace, write_traces
from vllm_nfp.adapter.engines import start_engine

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("generate", "train", "record")
LONGEST_DRAFT = 7
MOST_TOKENS = 512
"""Prompt and answer of a sequence of training."""
RATE, WARM_UP, SEED = 1e-3, 20, 0
TEMPERATURE = 0.8
"""Of the answers that are trained on; the recorded ones are greedy."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is generated, trained and recorded."""

    prompts: int
    """For each task."""
    answer_tokens: int
    vocabulary: int
    epochs: int
    batch: int
    recorded: int
    """Requests for each task."""
    recorded_tokens: int


def _engine(model: Path, **arguments: Any) -> Any:
    """Without compilation or graphs: times do not matter here."""
    return start_engine(
        model,
        {"max_model_len": 1024, "enforce_eager": True, "skip_tokenizer_init": False, **arguments},
    )


def _asked(llm: Any, texts: Sequence[str]) -> list[dict[str, list[int]]]:
    tokenizer = llm.get_tokenizer()
    found = []
    for text in texts:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        found.append({"prompt_token_ids": tokenizer(chat, add_special_tokens=False)["input_ids"]})
    return found


def generate(model: Path, out: Path, sizes: Sizes) -> None:
    """Write the model's own answers: a line of [prompt ids, answer ids] for each."""
    from vllm import SamplingParams

    llm = _engine(model, max_num_seqs=256, seed=SEED)
    texts = [text for task in TASKS for text in prompts(task, sizes.prompts, held_out=False)]
    params = SamplingParams(max_tokens=sizes.answer_tokens, temperature=TEMPERATURE)
    with (out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for answer in llm.generate(_asked(llm, texts), params):
            ids = [list(answer.prompt_token_ids), list(answer.outputs[0].token_ids)]
            file.write(json.dumps(ids) + "\n")


def train(model: Path, out: Path, sizes: Sizes) -> None:
    """Fit a head to the answers, and write it to ``head`` after each epoch."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.eagle_model import DECAY, UNROLLED, Head, shape_of

    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    target: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    target.to(device).eval()
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line) for line in lines]
    common = Counter(token for _, answer in answers for token in answer)
    ids = sorted(token for token, _ in common.most_common(sizes.vocabulary))
    drafted = torch.tensor(ids, device=device)
    embedding = target.get_input_embeddings().weight.detach()
    head = Head(shape_of(target.config, len(ids)), embedding, drafted).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, betas=(0.9, 0.95))
    weights = torch.tensor([DECAY**i for i in range(UNROLLED)], device=device)
    batches = _batches(answers, sizes.batch)
    features = [_features(target, head, batch, device) for batch in batches]
    steps, began = sizes.epochs * len(batches), time.monotonic()
    order = torch.Generator().manual_seed(SEED)
    with (out / "training.jsonl").open("w", encoding="utf-8") as file:
        for number in range(steps):
            if number % len(batches) == 0:
                places = torch.randperm(len(batches), generator=order).tolist()
            rate = min(1.0, (number + 1) / WARM_UP) * (1.0 - 0.9 * number / steps)
            optimizer.param_groups[0]["lr"] = RATE * rate
            tokens, states, last, counts = features[places[number % len(batches)]]
            with torch.no_grad():
                wanted = (last.float() @ embedding[drafted].T).softmax(-1)
            losses = head.losses(tokens, states.float(), wanted, counts)
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
                head.save(out / "head")


def _batches(answers: Sequence[Any], size: int) -> list[list[Any]]:
    """Answers of about the same length together."""
    ordered = sorted(
        (one for one in answers if len(one[1]) > 8), key=lambda one: sum(map(len, one))
    )
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def _features(
    target: Any, head: Any, batch: Sequence[Any], device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, the states that the head reads, the last ones, and where the token after counts."""
    import torch

    length = min(MOST_TOKENS, max(len(prompt) + len(answer) for prompt, answer in batch))
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    counts = torch.zeros(len(batch), length)
    for row, (prompt, answer) in enumerate(batch):
        ids = (prompt + answer)[:length]
        tokens[row, : len(ids)] = torch.tensor(ids)
        counts[row, len(prompt) - 1 : len(ids) - 1] = 1.0
    tokens, counts = tokens.to(device), counts.to(device)
    with torch.no_grad():
        found = target.model(tokens, output_hidden_states=True)
    states = torch.cat([found.hidden_states[layer] for layer in head.shape.layers], -1)
    # 16 bits: the states of all answers stay in memory.
    return tokens, states.bfloat16(), found.last_hidden_state.bfloat16(), counts


def record(model: Path, out: Path, sizes: Sizes) -> None:
    """Serve the model with its head, one request after the other, and write the traces."""
    from vllm import SamplingParams

    from benchmarks.draft_models import drafter
    from vllm_nfp.adapter.engines import worker_of

    speculation = {
        "method": "eagle3", "model": str(out / "head"), "num_speculative_tokens": LONGEST_DRAFT,
    }  # fmt: skip
    llm = _engine(model, max_num_seqs=1, speculative_config=speculation)
    watch = Watch(llm.llm_engine.engine_core.engine_core.scheduler)
    watch.follow(drafter(worker_of(llm).model_runner).model)
    params = SamplingParams(max_tokens=sizes.recorded_tokens, temperature=0.0)
    found = []
    for task in TASKS:
        for asked in _asked(llm, prompts(task, sizes.recorded, held_out=True)):
            llm.generate(asked, params, use_tqdm=False)
            found.append(RequestTrace(task, watch.take()))
    write_traces(out / "traces.jsonl.gz", found, environment.record())


class Watch:
    """Reads confidences and acceptances of an engine that serves one request at a time."""

    def __init__(self, scheduler: Any) -> None:
        self._confidences: list[float] = []
        self._made: list[float] = []
        self._steps: list[StepTrace] = []
        update = scheduler.update_from_output

        def updated(output: Any, model_output: Any, *args: Any, **kwargs: Any) -> Any:
            drafts = output.scheduled_spec_decode_tokens
            sampled = model_output.sampled_token_ids
            if drafts and sampled and len(self._made) == LONGEST_DRAFT:
                self._steps.append(StepTrace(tuple(self._made), len(sampled[0]) - 1))
            # The drafts that this step made are verified by the next.
            self._made, self._confidences = self._confidences, []
            return update(output, model_output, *args, **kwargs)

        scheduler.update_from_output = updated

    def follow(self, head: Any) -> None:
        """Note the probability of each token that the head drafts."""
        compute = head.compute_logits

        def computed(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            logits = compute(hidden, *args, **kwargs)
            self._confidences.append(float(logits[0].float().softmax(-1).max()))
            return logits

        head.compute_logits = computed

    def take(self) -> tuple[StepTrace, ...]:
        """The steps since the last call."""
        found, self._steps, self._made, self._confidences = tuple(self._steps), [], [], []
        return found


@click.command()
@click.option("--model", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--part", type=click.Choice(PARTS), help="One part alone [default: all].")
@click.option("--prompts", "number", default=500, show_default=True, help="For each task.")
@click.option("--answer-tokens", default=256, show_default=True)
@click.option("--vocabulary", default=16384, show_default=True, help="Tokens it can draft.")
@click.option("--epochs", default=8, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Sequences of a training step.")
@click.option("--recorded", default=24, show_default=True, help="Requests for each task.")
@click.option("--recorded-tokens", default=160, show_default=True)
def main(model: Path, out: Path, part: str | None, number: int, **sizes: int) -> None:
    """Train a head and record its drafts; see the module's text."""
    out.mkdir(parents=True, exist_ok=True)
    if part is not None:
        {"generate": generate, "train": train, "record": record}[part](
            model, out, Sizes(number, **sizes)
        )
        return
    for name in PARTS:  # each in a process of its own: an engine keeps the memory that it took
        command = [sys.executable, "-m", "benchmarks.eagle_head", *sys.argv[1:], "--part", name]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
