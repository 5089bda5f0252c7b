"""Makes a model with dummy weights talk: greedy tokens that differ, and that n-grams foresee.

Left alone such a model repeats one token. Its drafts are then copies of that token, and wake the
same experts again and again, where drafts of real text wake others. Here the embeddings of some
tokens are made large and unlike, so that the residual stream is the current token's embedding, and
the LM head answers each with its successor on one long cycle. Prompts walk the same cycle.
"""

from __future__ import annotations

import random
from typing import Any

FIRST_ID, TOKENS = 100, 256
"""Token ids of the cycle; every vocabulary here has them."""
STRIDE = 37
"""Places on the cycle from one prompt to the next: no two of the first 256 begin alike."""


def cycle() -> list[int]:
    """Token ids, each followed by its successor, the last by the first."""
    ids = list(range(FIRST_ID, FIRST_ID + TOKENS))
    random.Random(1).shuffle(ids)
    return ids


def prompt(place: int, tokens: int) -> list[int]:
    """A walk of so many tokens, that begins elsewhere for each of 256 places."""
    ids = cycle()
    begin = place * STRIDE
    return [ids[(begin + step) % TOKENS] for step in range(tokens)]


def teach(model: Any) -> None:
    """Set the embeddings and the LM head; in place, since CUDA graphs read them where they are.

    Args:
        model: a vLLM model with ``model.embed_tokens``, ``model.norm`` and ``lm_head``, whole on
            this rank.
    """
    import torch

    embedding, head = model.model.embed_tokens.weight, model.lm_head
    ids = torch.tensor(cycle(), device=embedding.device)
    rows = torch.randn((TOKENS, embedding.shape[1]), generator=torch.Generator().manual_seed(1)).to(
        embedding.device, embedding.dtype
    )
    with torch.inference_mode():
        embedding.data[ids] = rows
        model.model.norm.weight.data.fill_(1.0)  # dummy weights of either sign hide what it gets
        head.weight.data[ids.roll(-1)] = rows
        if head.weight.device.type == "cpu":  # vLLM has packed it for the CPU, in a copy
            head.quant_method.process_weights_after_loading(head)
