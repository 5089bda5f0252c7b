"""What the served model is given in a step that decodes text: token ids, or embeddings of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.bindings import UnknownVllmError


def is_multimodal(model_config: Any) -> bool:
    """Whether images and the like may come, which ``--language-model-only`` rules out.

    Older releases do not say so, and there a multimodal model is enough.
    """
    if versions.is_since(versions.MULTIMODAL_PROPERTY):
        return bool(model_config.supports_multimodal_inputs)
    return bool(model_config.is_multimodal_model)


def takes_embeddings(model_config: Any) -> bool:
    """Whether the runner embeds token ids itself, in every step, and gives the model the result."""
    return is_multimodal(model_config) or bool(model_config.enable_prompt_embeds)


@dataclass(frozen=True, slots=True)
class Rows:
    """A buffer of the model's own, of which the first tokens' rows are written."""

    storage: torch.UntypedStorage
    like: torch.Tensor
    """Its first rows."""

    def first(self, tokens: int) -> torch.Tensor:
        """The rows of so many tokens."""
        empty = torch.empty(0, dtype=self.like.dtype, device=self.like.device)
        size = (tokens, *self.like.shape[1:])
        return empty.set_(self.storage, self.like.storage_offset(), size, self.like.stride())


class TokenEmbedding:
    """Embeds token ids as the runner does in a step that decodes text.

    No image is among them, so that nothing is looked up in the cache of the encoder's outputs.
    Some models keep more than the result (Gemma 4 keeps embeddings for each layer), in buffers of
    their own that the next real step may rely on. What is written is found out on the first call.

    Args:
        model: as loaded.
        multimodal: it is told which tokens are text.
        most_tokens: of a step.
        device: that it is on.

    Raises:
        UnknownVllmError: if it writes into something that cannot be kept row by row.
    """

    def __init__(
        self, model: Any, multimodal: bool, most_tokens: int, device: torch.device
    ) -> None:
        self._model = model
        self._multimodal = multimodal
        self.ids_too = multimodal and bool(model.requires_raw_input_tokens)
        """The model is given the token ids beside their embeddings."""
        self._no_images = torch.zeros(most_tokens, dtype=torch.bool, device=device)
        ids = torch.zeros(_FEW, dtype=torch.int32, device=device)
        self._written = written_rows(lambda: self(ids), _FEW)
        self._kept: list[torch.Tensor] = []

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings, [tokens, hidden]; enqueued on the stream."""
        images: dict[str, Any] = {}
        if self._multimodal:
            images = {
                "multimodal_embeddings": [],
                "is_multimodal": self._no_images[: len(ids)],
            }
        found: torch.Tensor = self._model.embed_input_ids(ids, **images)
        return found

    @contextmanager
    def kept(self, tokens: int) -> Iterator[None]:
        """Give the model's own buffers back as they were, after a run of so many tokens."""
        live = [rows.first(tokens) for rows in self._written]
        if live and (not self._kept or len(self._kept[0]) < tokens):
            self._kept = [torch.empty_like(each) for each in live]
        for each, copy in zip(live, self._kept, strict=True):
            copy[:tokens].copy_(each)
        try:
            yield
        finally:
            for each, copy in zip(live, self._kept, strict=True):
                each.copy_(copy[:tokens])


_FEW = 3
"""Tokens of the call that finds out what is written."""


def written_rows(embed: Callable[[], torch.Tensor], tokens: int) -> tuple[Rows, ...]:
    """What a call writes to that was there before it.

    Args:
        tokens: that it embeds.

    Raises:
        UnknownVllmError: if it is not the first rows of a buffer, one for each token.
    """
    with _Writes() as writes:
        embed()
    found: dict[tuple[Any, ...], Rows] = {}
    for tensor in writes.found:
        if tensor.shape[:1] != (tokens,):
            raise UnknownVllmError(
                f"embedding tokens changes a tensor of the model's own, {list(tensor.shape)}, "
                f"which a probe could not put back"
            )
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.stride())
        found[key] = Rows(tensor.untyped_storage(), tensor)
    return tuple(found.values())


class _Writes(TorchDispatchMode):  # type: ignore[misc]  # it is not typed
    """Notes the tensors that operations write to, but for those made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.Tensor] = []
        self._made: list[torch.UntypedStorage] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        given = [each for each in (*args, *named.values()) if isinstance(each, torch.Tensor)]
        before = {each.untyped_storage().data_ptr() for each in given}
        before |= {storage.data_ptr() for storage in self._made}
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else named.get(argument.name)
            self.found += [each for each in _tensors_of(value) if not self._is_made(each)]
        result = func(*args, **named)
        self._made += [
            each.untyped_storage()
            for each in _tensors_of(result)
            if each.untyped_storage().data_ptr() not in before
        ]
        return result

    def _is_made(self, tensor: torch.Tensor) -> bool:
        place = tensor.untyped_storage().data_ptr()
        return any(storage.data_ptr() == place for storage in self._made)


def _tensors_of(value: Any) -> list[torch.Tensor]:
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [each for each in values if isinstance(each, torch.Tensor)]
