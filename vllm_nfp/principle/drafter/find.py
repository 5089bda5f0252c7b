"""The drafter of a method, in vLLM's words."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_nfp.principle.drafter.drafter import Drafter, DrafterError
from vllm_nfp.principle.drafter.heads import dflash_drafter, eagle_drafter, model_drafter
from vllm_nfp.principle.drafter.mtp import dense_width, mtp_drafter
from vllm_nfp.principle.shape import ModelShape, ShapeError

METHODS = ("mtp", "eagle", "eagle3", "dflash", "draft_model")


def drafter_of(
    method: str,
    config: Mapping[str, object],
    target: ModelShape,
    head: Mapping[str, object] | None = None,
) -> Drafter:
    """What drafts for a target.

    Args:
        method: one of :data:`METHODS`.
        config: the target's config.json.
        target: its shape, as the server splits it.
        head: the config.json of the head or draft model; None: a head of the usual shape.

    Raises:
        DrafterError: for another method, a target without prediction layers, or a draft model whose
            config is missing or unknown.
    """
    try:
        return _drafter(method, config, target, head)
    except ShapeError as error:
        raise DrafterError(
            f"the {method} drafter of {target.name} cannot be predicted ({error}): give its cost "
            f"(--draft-cost)"
        ) from None


def _drafter(
    method: str,
    config: Mapping[str, object],
    target: ModelShape,
    head: Mapping[str, object] | None,
) -> Drafter:
    if method == "mtp":
        return mtp_drafter(config, target)
    if method in ("eagle", "eagle3"):
        return eagle_drafter(target, dense_width(config), head, method)
    if method == "dflash":
        return dflash_drafter(target, dense_width(config), head)
    if method == "draft_model":
        return model_drafter(target, head)
    raise DrafterError(
        f"the cost of {method!r:.40} is not predicted, only those of {', '.join(METHODS)}: give it "
        f"(--draft-cost)"
    )
