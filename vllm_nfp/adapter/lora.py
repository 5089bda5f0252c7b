"""Runs without LoRA adapters, on a server that has them.

Under LoRA each step gives vLLM's kernels a mapping from its tokens to adapters
(``lora/punica_wrapper/``). A probe cannot run under the mapping of the step before it: the kernels
take as many rows as that step had, which may be more than the probe has. A mapping of its own would
take the place of the live one, which vLLM sets again only where it differs from the last. So a
probe runs the base model, and leaves the mapping alone. How adapters are kept out:

- On a GPU by the flag that vLLM itself sets for a step without any adapter. It lies in the host's
  memory. The custom ops of adapters look at it when they are launched or captured, in compiled code
  as well, and then launch nothing. A CUDA graph that is captured meanwhile has no adapter in it.
  Experts' kernels do not look at it.
- On a CPU layers' calls are replaced by functions that add nothing. That holds where layers are
  called from Python, without compiled code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_nfp.adapter import targets, versions
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.runner import RunnerView

BY_FLAG = "PunicaWrapperGPU"
BY_CALLS = "PunicaWrapperCPU"
"""vLLM's classes of what gives adapters to kernels, by how a probe keeps them out."""


def can_be_set_aside(config: Any) -> bool:
    """Whether a probe can run without the adapters of a server that has them."""
    if config.model_config.is_moe:
        return False
    if config.model_config.enforce_eager:
        return True
    return (
        config.device_config.device_type == "cuda"
        and versions.is_since(versions.LORA_IN_GRAPHS)
        and bool(config.compilation_config.cudagraph_specialize_lora)
    )


class Adapters:
    """The adapters of a runner; none if it serves no LoRA.

    Args:
        view: the runner.

    Raises:
        AttributeError: if this vLLM keeps them elsewhere.
        UnknownVllmError: if it gives them to kernels in an unknown way.
    """

    def __init__(self, view: RunnerView) -> None:
        self._flags: list[Any] = []
        self._called: list[Any] = []
        if view.vllm_config.lora_config is not None:
            manager = view.runner.lora_manager._adapter_manager
            for wrapper in manager.punica_wrapper_mapping.values():
                self._take(wrapper)

    def _take(self, wrapper: Any) -> None:
        kind = type(wrapper).__name__
        if kind == BY_FLAG:
            for mapping in (wrapper.token_mapping_meta, wrapper.prompt_mapping_meta):
                self._flags.append(mapping.no_lora_flag_cpu)
        elif kind == BY_CALLS:
            self._called.append(wrapper)
        else:
            raise UnknownVllmError(
                f"LoRA adapters are given to kernels in a way that this vllm-nfp does not know "
                f"({kind}): real steps are timed, nothing is probed"
            )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Have layers add nothing of an adapter while the context lasts.

        Raises:
            MissingTargetError: if this vLLM adds adapters otherwise.
        """
        patches = PatchSet()
        kept = [bool(flag) for flag in self._flags]
        try:
            for flag in self._flags:
                flag.fill_(True)
            for wrapper in self._called:
                for target in targets.ADD_LORA:
                    patches.wrap(target, _unchanged, on=wrapper)
            if self._called:
                patches.wrap(targets.LORA_EMBEDDING, _plain_embedding)
            yield
        finally:
            patches.restore()
            for flag, before in zip(self._flags, kept, strict=True):
                flag.fill_(before)


def _unchanged(_original: Any) -> Any:
    """Leaves an output as the layer without an adapter gives it."""
    return lambda output, *_, **__: output


def _plain_embedding(_original: Any) -> Any:
    """Looks no adapter's embeddings up: the places of tokens past the live step's are not set."""
    return lambda layer, token_ids: layer.base_layer(token_ids)
