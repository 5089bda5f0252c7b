"""Changes a model with dummy weights so that its greedy tokens differ and n-grams predict them.

Unchanged, such a model repeats one token. Its drafts are then copies of that token and activate the
same experts each time, where drafts of real text activate others. Here the embeddings of some
tokens are made large and different, so that the residual stream is the current token's embedding,
and the LM head answers each with its successor on one long cycle. Prompts follow the same cycle,
and so do the drafts of an EAGLE head that :func:`listen` and :func:`teach_head` have changed.
"""

from __future__ import annotations

import random
from typing import Any

FIRST_ID, TOKENS = 100, 256
"""Token ids of the cycle; every vocabulary here has them."""
STRIDE = 37
"""Places on the cycle from one prompt to the next: the first 256 begin with different tokens."""


def cycle() -> list[int]:
    """Token ids, each followed by its successor, the last by the first."""
    ids = list(range(FIRST_ID, FIRST_ID + TOKENS))
    random.Random(1).shuffle(ids)
    return ids


def prompt(place: int, tokens: int) -> list[int]:
    """So many tokens along the cycle, from a different start for each of 256 places."""
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

    embedding = model.model.embed_tokens.weight
    rows = torch.randn((TOKENS, embedding.shape[1]), generator=torch.Generator().manual_seed(1)).to(
        embedding.device, embedding.dtype
    )
    with torch.inference_mode():
        embedding.data[torch.tensor(cycle(), device=embedding.device)] = rows
        model.model.norm.weight.data.fill_(1.0)  # dummy weights of either sign hide what it gets
    _answer(model.lm_head, rows)


def listen(head_class: Any) -> None:
    """Give the LM head of a class of EAGLE heads the embedding of the token that was read last.

    The output of a layer with dummy weights is noise. The layer still runs, since its output is
    passed on to the next draft. Call it before the engine starts: CUDA graphs must contain it.

    Args:
        head_class: one of vLLM's, whose forward takes token ids, positions and hidden states, and
            returns what its LM head gets and what its next pass gets.
    """
    forward = head_class.forward

    def heard(
        self: Any, input_ids: Any, positions: Any, hidden_states: Any, inputs_embeds: Any = None
    ) -> tuple[Any, Any]:
        _, passed_on = forward(self, input_ids, positions, hidden_states, inputs_embeds)
        return self.model.embed_tokens(input_ids), passed_on

    head_class.forward = heard


def teach_head(head: Any) -> None:
    """Set an EAGLE head's own LM head; one that it shares with the target is set already.

    Args:
        head: a vLLM draft model whose class :func:`listen` has changed, with the target's
        embeddings.
    """
    import torch

    ids = torch.tensor(cycle(), device=head.model.embed_tokens.weight.device)
    _answer(head.lm_head, head.model.embed_tokens.weight.data[ids])


def _answer(lm_head: Any, rows: Any) -> None:
    """Have each token of the cycle, whose embeddings are the rows, answered by its successor."""
    import torch

    ids = torch.tensor(cycle(), device=lm_head.weight.device)
    with torch.inference_mode():
        lm_head.weight.data[ids.roll(-1)] = rows
        if lm_head.weight.device.type == "cpu":  # vLLM has packed it for the CPU, in a copy
            lm_head.quant_method.process_weights_after_loading(lm_head)
