"""The doctor reads a command line as ``vllm serve`` does."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vllm_nfp.adapter import examine
from vllm_nfp.adapter.examine import BAD_FLAGS
from vllm_nfp.doctor.asking import BadQuestionError, Question, ask_vllm

pytest.importorskip("vllm")


def test_all_ways_to_write_a_flag_are_read() -> None:
    args = examine._parsed(
        "a-model",
        ["--tensor_parallel_size", "2", "--speculative-config.method", "ngram", "--port", "8000",
         "--data-parallel-size=4", "--headless", "--nfp-config", '{"passive": true}'],
    )  # fmt: skip
    assert (args.model, args.tensor_parallel_size, args.data_parallel_size) == ("a-model", 2, 4)
    assert args.speculative_config == {"method": "ngram"}
    assert args.headless and args.port == 8000 and args.nfp_probe


def test_a_prediction_learns_how_the_model_is_split_and_stored() -> None:
    config = SimpleNamespace(
        model_config=SimpleNamespace(quantization="fp8"),
        parallel_config=SimpleNamespace(tensor_parallel_size=2, enable_expert_parallel=True),
        cache_config=SimpleNamespace(cache_dtype="fp8_e4m3"),
    )
    assert examine._stored(config) == {
        "tensor_parallel": 2, "expert_parallel": True, "quantization": "fp8",
        "kv_cache_dtype": "fp8_e4m3",
    }  # fmt: skip
    config.model_config.quantization = None
    assert examine._stored(config)["quantization"] is None


def test_a_flag_that_vllm_serve_does_not_take_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        examine._parsed("a-model", ["--tensor-paralel-size", "2"])
    assert ended.value.code == BAD_FLAGS
    assert "unrecognized arguments: --tensor-paralel-size 2" in capsys.readouterr().err


def test_what_vllm_serve_would_refuse_of_drafts_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It said that the probe will work, and the server ended at once."""
    with pytest.raises(SystemExit) as ended:
        examine._settings(examine._parsed("a-model", ["--nfp-draft-control"]))
    assert ended.value.code == BAD_FLAGS
    assert "the server drafts nothing: add --speculative-config" in capsys.readouterr().err
    drafts = '{"method": "ngram", "num_speculative_tokens": 3}'
    args = examine._parsed("m", ["--nfp-draft-control", "--speculative-config", drafts])
    probe = examine._settings(args)
    assert probe is not None and probe.draft_control
    assert "num_speculative_tokens_per_batch_size" not in args.speculative_config


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        (
            "1 validation error for SchedulerConfig\nmax_num_seqs\n  Input should be greater than "
            "or equal to 1 [type=greater_than_equal, input_value=0, input_type=int]\n"
            "    For further information visit https://errors.example",
            1,
            "max_num_seqs: Input should be greater than or equal to 1",
        ),
        ("vllm: error: unrecognized arguments: --a", BAD_FLAGS, "unrecognized arguments: --a"),
        ("vllm serve: error: --a is wrong", BAD_FLAGS, "--a is wrong"),
        (
            "  Value error, no Ray here [type=value_error, input_value=ArgsKwargs((), {'a': 1}), "
            "input_type=ArgsKwargs]\n    For further information visit https://errors.example",
            1,
            "no Ray here",
        ),
    ],
)
def test_only_vllms_own_words_are_told(said: str, status: int, told: str, tmp_path: Path) -> None:
    program = (
        f"import json, sys\n"
        f"if json.loads(sys.argv[1])['model']:\n"
        f"    print({said!r}, file=sys.stderr)\n    sys.exit({status})\n"
        f"print(json.dumps({{}}))\n"
    )
    command = (sys.executable, "-c", program)
    with pytest.raises(BadQuestionError) as refused:
        ask_vllm(Question(tmp_path), command)
    expected = told if status == BAD_FLAGS else f"vLLM cannot serve {tmp_path}: {told}"
    assert str(refused.value) == expected
