"""The acceptance that ``recommend`` is given, by one of four options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vllm_nfp.cli.common import Refusal, parse_list
from vllm_nfp.cli.options import flag
from vllm_nfp.draft.acceptance import Acceptance, AcceptanceError, constant, from_rates


def given_acceptance(options: Mapping[str, Any]) -> dict[str, Any]:
    """The one acceptance that is given, as ``recommend`` takes it; empty if none is."""
    given = {name: value for name, value in options.items() if value is not None}
    if len(given) > 1:
        raise Refusal(f"give one of {', '.join(map(flag, options))}")
    for name, value in given.items():
        if name == "acceptance_from":
            return given
        try:
            return {"acceptance": _acceptance_of(name, value)}
        except AcceptanceError as error:
            text = re.sub("^acceptance( rates)?", flag(name), str(error))
            raise Refusal(text) from None
    return {}


def _acceptance_of(name: str, value: Any) -> Acceptance:
    if name == "acceptance":
        return constant(value)
    listed = parse_list(value, float, flag(name), example="0.9,0.8,0.7")
    return from_rates(listed) if name == "acceptance_rates" else Acceptance(listed)
