"""Watches the collectives between ranks during a run that is not compiled.

vLLM's layers reach the other ranks through its group coordinators: an all-reduce after the
attention's output projection and after each FFN under tensor parallelism, an all-gather and a
reduce-scatter where experts' tokens travel. In a run of the plain model these are Python calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet

_GROUPS = ("get_tp_group", "get_ep_group", "get_dp_group")


@contextmanager
def watched(on_edge: Callable[[bool], None]) -> Iterator[None]:
    """Call ``on_edge(is_start)`` around each collective while the context lasts.

    A collective that calls others counts once.
    """
    depth = 0

    def watch(call: Callable[..., Any]) -> Callable[..., Any]:
        def watched_call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            outermost = depth == 0
            depth += 1
            try:
                if outermost:
                    on_edge(True)
                result = call(*args, **kwargs)
                if outermost:
                    on_edge(False)
                return result
            finally:
                depth -= 1

        return watched_call

    patches = PatchSet()
    try:
        for group in _groups_of_several():
            for target in targets.COLLECTIVES:
                patches.wrap(target, watch, on=group)
        yield
    finally:
        patches.restore()


def _groups_of_several() -> list[Any]:
    from vllm.distributed import parallel_state

    groups: list[Any] = []
    for name in _GROUPS:
        try:
            group = getattr(parallel_state, name)()
        except AssertionError:
            continue  # not made for this model
        if group is not None and group.world_size > 1 and group not in groups:
            groups.append(group)
    return groups
