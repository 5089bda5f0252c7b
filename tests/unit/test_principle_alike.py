"""Routed experts where all positions of a sequence choose the same ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from test_principle_hybrid import SUPER
from test_principle_models import QWEN_3_30B_A3B

from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.principle.alike import AlikeRouting
from vllm_nfp.principle.expert_tiles import tiles
from vllm_nfp.principle.experts import expert_terms
from vllm_nfp.principle.gemm import gemm_terms
from vllm_nfp.principle.routing import Routing
from vllm_nfp.principle.step import Step
from vllm_nfp.principle.terms import FloatArray, Terms, sum_terms

QWEN = shape_from_config(QWEN_3_30B_A3B)
ROUTING = Routing(128, 8.0)


def test_what_lies_beside_the_routed_experts_is_priced_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    priced = []

    def counted(*args: Any) -> Terms:
        priced.append(args[2])
        return gemm_terms(*args)

    monkeypatch.setattr("vllm_nfp.principle.step.gemm_terms", counted)
    shape = shape_from_config(SUPER)
    positions = np.arange(1, 9, dtype=np.float64)
    found = Step(shape, target_of("H200"), Serving(), 8, 1024, positions)
    plain = found.moe_ffn()
    assert {*shape.shared_gemms, *shape.latent_gemms} == {*priced}
    before = len(priced)
    alike = found.moe_ffn_alike()
    assert len(priced) == before
    alone = Step(shape, target_of("H200"), Serving(), 8, 1024, positions).moe_ffn_alike()
    assert alike.seconds().tolist() == alone.seconds().tolist()
    assert alike.seconds()[-1] < plain.seconds()[-1]


@pytest.mark.parametrize("sequences", [1, 2])
def test_unsorted_rows_of_a_sequence_find_their_expert_in_l2(sequences: int) -> None:
    """Eight experts' matrices lie between two rows; 10.7 if the tokens were in any order."""
    alike = AlikeRouting(ROUTING, sequences)
    assert alike.rows_apart(np.array([4.0])) == pytest.approx([8.0])
    assert ROUTING.rows_apart(np.array([3.0])) == pytest.approx([8.0 * 4.0 / 3.0])
    in_any_order = _InAnyOrder(ROUTING, sequences)
    assert seconds(alike) < 0.96 * seconds(in_any_order)


@dataclasses.dataclass(frozen=True, slots=True)
class _InAnyOrder(AlikeRouting):
    def rows_apart(self, tokens: FloatArray) -> FloatArray:
        return self.routing.rows_apart(tokens)


def seconds(routing: AlikeRouting) -> float:
    """A layer at four tokens, whose rows go unsorted."""
    target = target_of("H200")
    found = expert_terms(
        target.hardware,
        target.calibration.experts,
        QWEN.expert_gemms,
        np.array([4.0]),
        routing,
        hidden_size=QWEN.hidden_size,
        config=tiles(*(np.array([size]) for size in (16, 64, 128, 1))),
    )
    return float(sum_terms(found)[0])
