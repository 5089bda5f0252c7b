"""Random prompts that fill a KV cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm_nfp.adapter.kv_fill import Prompts, Room, fill, prompts_for, reserved_ids
from vllm_nfp.types import Shape

ROOM = Room(
    block_tokens=16, blocks=40_000, context=40_960, step_tokens=8192, sequences=256,
    keeps_ended=True,
)  # fmt: skip


def room(**changes: Any) -> Room:
    return Room(**{**{n: getattr(ROOM, n) for n in Room.__dataclass_fields__}, **changes})


@pytest.mark.parametrize(
    ("shape", "given", "expected"),
    [
        # 32 sequences read 1026 blocks each; 512 are the most that a step fills.
        (Shape(32, 16_384, 32), ROOM, Prompts(8192, 32, 1, stay=False)),
        # A sequence reads 33 blocks; 15 of them fit in a step.
        (Shape(32, 512, 4), ROOM, Prompts(528, 32, 15, stay=False)),
        # A sequence holds at most 6 whole blocks, and generates a token.
        (Shape(32, 512, 4), room(context=100), Prompts(96, 32, 32, stay=False)),
        # Where no prompt can fill a block, it fills what it can.
        (Shape(2, 8, 2), room(context=12, step_tokens=64), Prompts(11, 2, 2, stay=False)),
        # The cache has no more.
        (Shape(32, 16_384, 32), room(blocks=1000), Prompts(496, 32, 16, stay=False)),
        (Shape(32, 16_384, 32), room(blocks=20), Prompts(16, 20, 20, stay=False)),
        # Without prefix caching each goes on, one token in a step, until the last has begun.
        (Shape(4, 128, 4), room(keeps_ended=False, step_tokens=128), Prompts(112, 4, 1, stay=True)),
    ],
)
def test_prompts_write_a_context_for_each_sequence(
    shape: Shape, given: Room, expected: Prompts
) -> None:
    found = prompts_for(shape, given)
    assert found == expected
    blocks = -(-found.tokens // given.block_tokens)
    assert found.count * blocks <= given.blocks
    assert sum(found.batches) == found.count
    stay = found.count if found.stay else 1
    assert found.tokens + stay <= given.context
    assert max(found.batches) * found.tokens + (stay - 1) <= given.step_tokens


def test_ids_that_a_config_names_are_left_out_wherever_they_are() -> None:
    config = {
        "eos_token_id": [1, 2], "image_token_id": 3, "pad_token_id": None, "vocab_size": 9,
        "text_config": {"bos_token_id": 0}, "id2label": {0: "a"}, "video_token_index": 5,
    }  # fmt: skip
    assert reserved_ids(config) == {0, 1, 2, 3, 5}


class Llm:
    """Notes what it is given; each step takes a second."""

    def __init__(self, caching: bool = True, fault: Exception | None = None) -> None:
        self.seconds = 0.0
        self.given: list[tuple[list[int], int]] = []
        self.steps: list[int] = []
        self._fault = fault
        self._left: list[int] = []
        model = SimpleNamespace(
            max_model_len=65, is_diffusion=False, is_moe=True, dtype=SimpleNamespace(itemsize=2),
            hf_config=SimpleNamespace(to_dict=lambda: {"eos_token_id": 3}),
            hf_text_config=SimpleNamespace(), get_vocab_size=lambda: 5, get_hidden_size=lambda: 8,
        )  # fmt: skip
        scheduler = SimpleNamespace(max_num_batched_tokens=160, max_num_seqs=8)
        cache = SimpleNamespace(block_size=16, num_gpu_blocks=100, enable_prefix_caching=caching)
        config = SimpleNamespace(
            model_config=model, scheduler_config=scheduler, cache_config=cache,
            parallel_config=SimpleNamespace(data_parallel_size=1),
        )  # fmt: skip
        self.llm_engine = SimpleNamespace(
            vllm_config=config, step=self.step, has_unfinished_requests=lambda: bool(self._left)
        )

    def enqueue(self, prompts: list[dict[str, list[int]]], params: Any, use_tqdm: bool) -> None:
        if self._fault is not None:
            raise self._fault
        assert not use_tqdm and params.ignore_eos and not params.detokenize
        self.given += [(prompt["prompt_token_ids"], params.max_tokens) for prompt in prompts]
        self._left += [params.max_tokens] * len(prompts)

    def step(self) -> None:
        self.seconds += 1.0
        self.steps.append(len(self._left))
        self._left = [left - 1 for left in self._left if left > 1]


def test_every_prompt_is_whole_in_a_step_of_its_own_batch() -> None:
    llm = Llm()
    assert fill(llm, Shape(6, 60, 4), 100.0, lambda: llm.seconds) == ""
    assert [(len(ids), most) for ids, most in llm.given] == [(64, 1)] * 6
    assert llm.steps == [2, 2, 2]
    assert {token for ids, _ in llm.given for token in ids} == {0, 1, 2, 4}
    assert len({tuple(ids) for ids, _ in llm.given}) == 6


def test_without_prefix_caching_each_stays_until_the_last_has_begun() -> None:
    llm = Llm(caching=False)
    assert fill(llm, Shape(6, 60, 4), 100.0, lambda: llm.seconds) == ""
    assert [(len(ids), most) for ids, most in llm.given] == [
        (48, 2), (48, 2), (48, 2), (48, 1), (48, 1), (48, 1),
    ]  # fmt: skip
    assert llm.steps == [3, 6]


def test_what_the_time_is_too_short_for_is_said() -> None:
    llm = Llm()
    note = fill(llm, Shape(6, 60, 4), 0.5, lambda: llm.seconds)
    assert note == (
        "contexts were read in part from an empty KV cache, where tokens choose more experts than "
        "in a server: 67% of the random prompts did not run in 0.5 s; give more --seconds"
    )
    assert len(llm.given) == 2


def test_prompts_that_fail_are_said_in_one_sentence() -> None:
    llm = Llm(fault=ValueError("ids\nare refused"))
    note = fill(llm, Shape(6, 60, 4), 1.0)
    assert note == (
        "contexts were read from an empty KV cache, where tokens choose more experts than in a "
        "server: random prompts failed (ids are refused)"
    )
