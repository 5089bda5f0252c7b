"""Runs without LoRA adapters, on a server that has them.

Under LoRA each step gives vLLM's kernels a mapping from its tokens to adapters
(``lora/punica_wrapper/``). A probe cannot run under the mapping of the step before it: the kernels
take as many rows as that step had, which may be more than the probe has. A mapping of its own would
take the place of the live one, which vLLM sets again only where it differs from the last. So a
probe runs the base model, and leaves the mapping alone: while it runs, the layers' adapters do
nothing. That holds where layers are called from Python, without compiled code and CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.runner import RunnerView


class Adapters:
    """The adapters of a runner; none if it serves no LoRA.

    Args:
        view: the runner.

    Raises:
        AttributeError: if this vLLM keeps them elsewhere.
    """

    def __init__(self, view: RunnerView) -> None:
        self._wrappers: list[Any] = []
        if view.vllm_config.lora_config is not None:
            manager = view.runner.lora_manager._adapter_manager
            self._wrappers = list(manager.punica_wrapper_mapping.values())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Have layers add nothing of an adapter while the context lasts.

        Raises:
            MissingTargetError: if this vLLM adds adapters otherwise.
        """
        patches = PatchSet()
        try:
            for wrapper in self._wrappers:
                for target in targets.ADD_LORA:
                    patches.wrap(target, _unchanged, on=wrapper)
            if self._wrappers:
                patches.wrap(targets.LORA_EMBEDDING, _plain_embedding)
            yield
        finally:
            patches.restore()


def _unchanged(_original: Any) -> Any:
    """Leaves an output as the layer without an adapter gives it."""
    return lambda output, *_, **__: output


def _plain_embedding(_original: Any) -> Any:
    """Looks no adapter's embeddings up: the places of tokens past the live step's are not set."""
    return lambda layer, token_ids: layer.base_layer(token_ids)
