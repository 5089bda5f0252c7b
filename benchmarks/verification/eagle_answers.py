"""A small real model that answers prompts in batches, for ``eagle_head``.

It is run by transformers alone: neither training nor recording needs vLLM.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

Answer = tuple[list[int], list[int]]
"""Ids of a prompt, and of what the model answers to it."""
SEQUENCES = {"cuda": 2048, "cpu": 32}
"""Answered at once. SmolLM2-135M keeps 23 kB of keys and values for a token: 2048 sequences of 512
tokens take 24 GB."""
SEED = 0


def device() -> str:
    """Where models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_target(model: Path) -> Any:
    """The model, ready to be run: in 16 bits on a GPU, as it is served; a CPU is slow at these."""
    from transformers import AutoModelForCausalLM

    held = torch.bfloat16 if device() == "cuda" else torch.float32
    target: Any = AutoModelForCausalLM.from_pretrained(model, dtype=held)
    return target.to(device()).eval()


def embedding_of(target: Any) -> Tensor:
    """The model's embedding in 32 bits, in which heads are trained."""
    found: Tensor = target.get_input_embeddings().weight.detach().float()
    return found


def answers(
    target: Any,
    model: Path,
    texts: Sequence[str],
    tokens: int,
    *,
    temperature: float | None = None,
    samples: int = 1,
) -> Iterator[list[Answer]]:
    """Batches of answers of so many tokens at most; greedy ones without a temperature.

    Texts of about the same length are answered together. The batches come in random order, so that
    whoever stops early has texts of all lengths.

    Args:
        samples: answers for each text.
    """
    asked = sorted(prompt_ids(model, texts), key=len)
    end = target.config.eos_token_id
    how: dict[str, Any] = {"do_sample": False}
    if temperature is not None:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how |= {"max_new_tokens": tokens, "num_return_sequences": samples}
    how["pad_token_id"] = end
    size = max(1, SEQUENCES[device()] // samples)
    parts = [asked[at : at + size] for at in range(0, len(asked), size)]
    random.Random(SEED).shuffle(parts)
    for part in parts:
        yield _answered(target, part, end, how)


def _answered(
    target: Any, part: Sequence[list[int]], end: int, how: dict[str, Any]
) -> list[Answer]:
    """The answers to these prompts, each up to its end token."""
    longest = max(map(len, part))
    ids = torch.tensor([[end] * (longest - len(one)) + one for one in part])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in part])
    with torch.no_grad():
        made = target.generate(ids.to(device()), attention_mask=mask.to(device()), **how)
    found = []
    for row, sequence in enumerate(made[:, longest:].tolist()):
        stop = sequence.index(end) + 1 if end in sequence else len(sequence)
        found.append((part[row // how["num_return_sequences"]], sequence[:stop]))
    return found


def prompt_ids(model: Path, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text as a user's message."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    found = []
    for text in texts:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        found.append(tokenizer(chat, add_special_tokens=False)["input_ids"])
    return found


def by_length(answered: Sequence[Answer], size: int) -> list[list[Answer]]:
    """Batches of answers, those of about the same length together."""
    ordered = sorted(answered, key=lambda one: sum(map(len, one)))
    return [list(ordered[at : at + size]) for at in range(0, len(ordered), size)]


def states(target: Any, layers: Sequence[int], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What a head reads at each position, and the last layer's states.

    Args:
        layers: those whose inputs the head reads.
        tokens: [B, T] ids.
    """
    with torch.no_grad():
        found = target.model(tokens, output_hidden_states=True, use_cache=False)
    return torch.cat([found.hidden_states[i] for i in layers], -1), found.last_hidden_state
