"""What a server is sent during a soak: mixed traffic, and a fixed set of prompts."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.error import HTTPError

from benchmarks.serving import eagle_prompts, load
from benchmarks.serving.traffic import MIN_PROMPT_TOKENS, Arrivals, Load
from vllm_nfp.start.requests import complete

Prompt: TypeAlias = str | list[int]
"""Text for a model that has a tokenizer, else token ids."""
ANSWER_TOKENS = 48
FIXED_PROMPTS = 9
FIXED_SEED = 20


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of traffic.

    Attributes:
        context_share: of the longest context, for the prompt.
        output_tokens: of each answer.
        rate: factor on the requests per second.
    """

    name: str
    context_share: float
    output_tokens: int
    rate: float


KINDS = (
    Kind("short", 0.02, 64, 1.0),
    Kind("long prompts", 0.75, 16, 0.25),
    Kind("burst, aborted", 0.01, 512, 8.0),
    Kind("medium", 0.1, 128, 1.0),
)
"""In turn, with a pause after each, in which the server is idle. What a kind has sent and is not
answered at its end is aborted, as when a user closes the connection."""


def cycle(base: Load, requests_per_second: float, longest_context: int) -> Iterator[Arrivals]:
    """One stretch of traffic after the other, without end; no two are the same.

    Args:
        base: server, model and seconds of a stretch.
        longest_context: ``--max-model-len``.
    """
    for number, kind in enumerate(itertools.cycle(KINDS)):
        prompt = max(MIN_PROMPT_TOKENS, int(kind.context_share * longest_context))
        room = longest_context - prompt
        stretch = dataclasses.replace(
            base,
            prompt_tokens=prompt,
            output_tokens=min(kind.output_tokens, room),
            seed=number,
        )
        yield Arrivals(stretch, kind.rate * requests_per_second)


def send(arrivals: Arrivals) -> None:
    """Send one stretch."""
    load.run_open(arrivals, 0.0)


def real_texts() -> list[Prompt]:
    """The fixed prompts of a model that reads text: chat, code and copying."""
    each = FIXED_PROMPTS // len(eagle_prompts.TASKS)
    tasks = eagle_prompts.TASKS
    return [text for task in tasks for text in eagle_prompts.prompts(task, each, held_out=True)]


def token_prompts(vocab_size: int) -> list[Prompt]:
    """The fixed prompts of a model with dummy weights: random tokens, 16 to 400."""
    rng = random.Random(FIXED_SEED)
    return [
        [rng.randrange(2, vocab_size) for _ in range(rng.randrange(16, 400))]
        for _ in range(FIXED_PROMPTS)
    ]


def answers(url: str, model: str, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Tokens and their log-probabilities, greedily, one prompt at a time.

    One at a time, since other batches have other low-order bits. The server needs its prefix cache
    off: a prompt from it is computed in other pieces.

    Raises:
        LoadError: if the server refuses a request, with its reason.
        OSError: if it cannot be reached.
    """
    found = []
    for prompt in prompts:
        body = {
            "model": model, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0,
            "ignore_eos": True, "logprobs": 0, "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # a server without a tokenizer has no other names
        }  # fmt: skip
        try:
            (choice,) = complete(url, body)["choices"]
        except HTTPError as error:
            reason = error.read().decode(errors="replace")
            raise load.LoadError(f"the server answered {error.code}: {reason:.500}") from None
        logprobs = choice["logprobs"]
        found.append({
            "tokens": choice["token_ids"],
            "logprobs": None if logprobs is None else logprobs["token_logprobs"],
            "text": choice["text"],
        })  # fmt: skip
    return found
