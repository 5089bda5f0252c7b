"""A one-layer EAGLE-3 head in torch: trained here, served by vLLM.

The head at position p reads the token at p + 1 and what the target computed up to p (the inputs of
three of its layers). It drafts the token at p + 2. Later draft steps read the head's own output in
place of the target's. Training unrolls them, as vLLM runs them: a query of draft step j at position
q sees the keys of the first step up to q - j + 1, and its own of the steps after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

UNROLLED = 7
"""Draft steps that training unrolls: as many as are recorded."""
DECAY = 0.8
"""Weight of a draft step's loss over that of the one before."""


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Sizes of a head, most of which are its target's."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    epsilon: float
    rope_theta: float
    vocabulary: int
    """Tokens that the head can draft."""
    target_vocabulary: int
    most_positions: int
    layers: tuple[int, int, int]
    """Layers of the target whose inputs the head reads: vLLM's default of its number of layers."""


def shape_of(config: Any, vocabulary: int) -> HeadShape:
    """The head of a Llama model with this transformers config."""
    number = config.num_hidden_layers
    return HeadShape(
        config.hidden_size, config.intermediate_size, config.num_attention_heads,
        config.num_key_value_heads, config.head_dim, config.rms_norm_eps,
        config.rope_parameters["rope_theta"], vocabulary, config.vocab_size,
        config.max_position_embeddings, (2, number // 2, number - 3),
    )  # fmt: skip


class Head(nn.Module):  # type: ignore[misc,unused-ignore]
    """The weights, under the names that vLLM reads.

    Args:
        embedding: of the target, frozen.
        drafted: ids of the tokens that the head can draft.
    """

    def __init__(self, shape: HeadShape, embedding: Tensor, drafted: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.embedding, self.drafted = embedding, drafted
        wide, size = shape.hidden, shape.head_size

        def linear(into: int, out: int) -> nn.Linear:
            return nn.Linear(into, out, bias=False)

        def norm() -> nn.RMSNorm:
            return nn.RMSNorm(wide, eps=shape.epsilon)

        attention = nn.ModuleDict({
            "q_proj": linear(2 * wide, shape.heads * size),
            "k_proj": linear(2 * wide, shape.kv_heads * size),
            "v_proj": linear(2 * wide, shape.kv_heads * size),
            "o_proj": linear(shape.heads * size, wide),
        })  # fmt: skip
        mlp = nn.ModuleDict({
            "gate_proj": linear(wide, shape.intermediate),
            "up_proj": linear(wide, shape.intermediate),
            "down_proj": linear(shape.intermediate, wide),
        })  # fmt: skip
        self.fc = linear(3 * wide, wide)
        self.midlayer = nn.ModuleDict({
            "input_layernorm": norm(), "hidden_norm": norm(), "self_attn": attention,
            "post_attention_layernorm": norm(), "mlp": mlp,
        })  # fmt: skip
        self.norm = norm()
        self.lm_head = linear(wide, shape.vocabulary)
        # It begins with the target's own rows, which are tied to its embedding.
        self.lm_head.weight.data.copy_(embedding[drafted])

    def losses(self, tokens: Tensor, states: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
        """Cross entropy with the target of each unrolled draft step, shape [UNROLLED].

        Args:
            tokens: [B, T] ids.
            states: [B, T, 3 hidden] of the target.
            wanted: [N, vocabulary] probabilities that the target gives the token after, at the N
                places of :func:`counted`. They add up to less than 1 where it may be a token that
                cannot be drafted: such a place weighs less.
            counts: [B, T] where the token after is an answer's.
        """
        found = []
        hidden, kept = self.fc(states[:, :-1]), _Kept()
        embedded = self.embedding[tokens[:, 1:]]
        # Only these places cost logits, which take most of a step's time and memory.
        rows, columns = counted(counts)
        for step in range(UNROLLED):
            if step:
                hidden = functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
            hidden = self._step(embedded, hidden, kept)
            logits = self._logits(hidden[rows, columns])
            entropy = functional.cross_entropy(logits, wanted, reduction="none")
            reached = (columns >= step).float()
            found.append((entropy * reached).sum() / reached.sum().clamp(min=1.0))
        return torch.stack(found)

    def drafts(self, tokens: Tensor, states: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """What the head drafts from every position, all at once.

        Args:
            tokens: [B, T] ids.
            states: [B, T, 3 hidden] of the target.

        Returns:
            Ids of the target's vocabulary and log odds of their probabilities, both
            [B, T - steps, steps]: row i drafts the tokens at i + 2 and later.
        """
        hidden, kept = self.fc(states[:, :-1]), _Kept()
        embedded = self.embedding[tokens[:, 1:]]
        ids: list[Tensor] = []
        odds: list[Tensor] = []
        drafted = tokens[:, 1:]
        length = tokens.shape[1] - steps
        for step in range(steps):
            if step:
                # What was drafted from a position is read one position later.
                hidden = functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
                embedded = self.embedding[functional.pad(drafted, (1, 0))[:, :-1]]
            hidden = self._step(embedded, hidden, kept)
            logits = self._logits(hidden)
            best, place = logits.max(-1)
            drafted = self.drafted[place]
            ids.append(drafted[:, step : step + length])
            found = -torch.log(torch.expm1(logits.logsumexp(-1) - best))
            odds.append(found[:, step : step + length])
        return torch.stack(ids, -1), torch.stack(odds, -1)

    def _logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.lm_head(self.norm(hidden))
        return found

    def _step(self, embedded: Tensor, hidden: Tensor, kept: _Kept) -> Tensor:
        layer = self.midlayer
        both = [layer["input_layernorm"](embedded), layer["hidden_norm"](hidden)]
        hidden = hidden + self._attention(torch.cat(both, -1), kept)
        mlp, x = layer["mlp"], layer["post_attention_layernorm"](hidden)
        found: Tensor = mlp["down_proj"](functional.silu(mlp["gate_proj"](x)) * mlp["up_proj"](x))
        return hidden + found

    def _attention(self, x: Tensor, kept: _Kept) -> Tensor:
        shape, attention = self.shape, self.midlayer["self_attn"]
        batch, length, _ = x.shape

        def split(name: str, heads: int) -> Tensor:
            found = attention[name](x).view(batch, length, heads, shape.head_size)
            return found.transpose(1, 2)

        def grouped(of: Tensor) -> Tensor:
            return of.repeat_interleave(shape.heads // shape.kv_heads, 1)

        turned = self._turned(length, x)
        query = _rotated(split("q_proj", shape.heads), *turned)
        key = grouped(_rotated(split("k_proj", shape.kv_heads), *turned))
        kept.keys.append(key)
        kept.values.append(grouped(split("v_proj", shape.kv_heads)))
        mixed = kept.attend(query / math.sqrt(shape.head_size))
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
        found: Tensor = attention["o_proj"](mixed)
        return found

    def _turned(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        size = self.shape.head_size
        places = torch.arange(0, size, 2, device=like.device, dtype=torch.float32)
        speeds = self.shape.rope_theta ** (-places / size)
        angles = torch.arange(length, device=like.device)[:, None] * speeds[None]
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def counted(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the head's places, from the second token on, that losses count."""
    rows, columns = (counts[:, 1:] > 0).nonzero(as_tuple=True)
    return rows, columns


class _Kept:
    """Keys and values of the draft steps so far."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(self, query: Tensor) -> Tensor:
        """Attention of the last step's queries, [B, heads, T, head size]."""
        length, step = query.shape[2], len(self.keys) - 1
        seen = torch.ones(length, length, dtype=torch.bool, device=query.device)
        first = query @ self.keys[0].transpose(-1, -2)
        # A row that sees nothing, before any draft of this step, must not become NaN.
        first = first.masked_fill(~seen.tril(-step), torch.finfo(first.dtype).min)
        own = [
            (query * _later(key, step - i)).sum(-1, keepdim=True)
            for i, key in enumerate(self.keys)
            if i
        ]
        share = torch.cat([first, *own], -1).softmax(-1)
        mixed = share[..., :length] @ self.values[0]
        for i, value in enumerate(self.values[1:], start=1):
            mixed = mixed + share[..., length + i - 1, None] * _later(value, step - i)
        return mixed


def _later(of: Tensor, places: int) -> Tensor:
    """The same, so many positions later."""
    return functional.pad(of, (0, 0, places, 0))[:, :, : of.shape[2]] if places else of


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    return x * cosine + torch.cat([-other, one], -1) * sine
