"""Watches the collectives between ranks during a run that is not compiled.

vLLM's layers reach the other ranks through its group coordinators: an all-reduce after the
attention's output projection and after each FFN under tensor parallelism, an all-gather and a
reduce-scatter where experts' tokens travel. In a run of the plain model these are Python calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_GROUPS = ("get_tp_group", "get_ep_group", "get_dp_group")
CALLS = (
    "all_reduce",
    "all_gather",
    "all_gatherv",
    "reduce_scatter",
    "reduce_scatterv",
    "reduce_scatterv_into_output",
    "gather",
    "dispatch",
    "combine",
)
"""Collectives of vLLM's GroupCoordinator."""
NOT_IN_ALL = ("reduce_scatterv_into_output",)
"""Those that not every known release has (sources of 0.26.0 to 0.33.0)."""


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

    replaced: list[tuple[Any, str]] = []
    try:
        for group in _groups_of_several():
            for name in CALLS:
                # bindings.check() has looked up all that every release has.
                if hasattr(group, name) and name not in vars(group):
                    setattr(group, name, watch(getattr(group, name)))
                    replaced.append((group, name))
        yield
    finally:
        for group, name in replaced:
            delattr(group, name)


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
