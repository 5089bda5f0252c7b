from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from vllm_nfp import plugin
from vllm_nfp.adapter import flags
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import (
    ENV_VAR,
    ConfigError,
    ProbeConfig,
    check_writable_folder,
    config_from_environment,
    config_from_json,
    config_from_mapping,
    read_settings_argument,
)


def test_settings_survive_json() -> None:
    config = ProbeConfig(epsilons=(0.1,), max_positions=64, output_dir="/x", seed=3)
    assert config_from_json(config.to_json()) == config
    assert config_from_environment({ENV_VAR: config.to_json()}) == config
    assert config_from_environment({}) is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"bogus": 1}, "unknown field 'bogus' in the NFP settings; allowed: epsilons,"),
        ({"epsilons": []}, "epsilons must not be empty"),
        ({"epsilons": [0.2, 0.1]}, "must be ascending without repeats"),
        ({"epsilons": [float("nan")]}, "must be a fraction from 0.001 to 1, not nan"),
        ({"epsilons": 0.1}, "epsilons must be a list, not 0.1"),
        ({"draft_acceptance": 1.5}, "draft_acceptance must be a fraction from 0 to 1, not 1.5"),
        ({"max_positions": 1}, "from 2 to 512, not 1"),
        ({"max_positions": True}, "from 2 to 512, not True"),
        ({"max_positions": 8.0}, "not 8.0"),
        ({"batch_sizes": [1, 1]}, "ascending"),
        ({"batch_sizes": list(range(1, 30))}, "at most 16 values, not 29"),
        ({"positions": [2, 4]}, "must begin with 1"),
        ({"positions": [1, 64]}, "above max_positions 32"),
        ({"overhead_budget": -0.1}, "from 0 to 0.5, not -0.1"),
        ({"overhead_budget": "0.1"}, "not '0.1'"),
        ({"min_samples": 40}, "max_samples 32 is below min_samples 40"),
        ({"layer_histograms": 1}, "must be true or false"),
        ({"output_dir": ""}, "must be a directory path"),
        ({"start_profile": ""}, "start_profile must be a file path, not ''"),
        ({"min_samples": 0}, "min_samples must be a number of samples from 1 to 1000, not 0"),
        ({"wanted_samples": -1}, "wanted_samples must be a number of samples from 0 to 10000"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    values: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(values)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_grid_ends_at_the_largest_count() -> None:
    assert ProbeConfig().grid == (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
    assert ProbeConfig(max_positions=20).grid[-2:] == (16, 20)
    assert ProbeConfig(positions=(1, 3, 9)).grid == (1, 3, 9)


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, (1,)),
        (8, (1, 2, 4, 8)),
        (200, (1, 2, 4, 8, 16, 32, 64, 128, 200)),
        (10_000, tuple(2**i for i in range(13))),
    ],
)
def test_the_reported_batch_sizes_reach_the_largest_batch(
    most: int, sizes: tuple[int, ...]
) -> None:
    assert ProbeConfig().for_server(most, 4096).batch_sizes == sizes
    assert ProbeConfig(batch_sizes=(3,)).for_server(most, 4096).batch_sizes == (3,)


def test_settings_come_from_json_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "nfp.json"
    path.write_text('{"seed": 4}')
    assert read_settings_argument(f"@{path}") == {"seed": 4}
    assert read_settings_argument('{"seed": 5}') == {"seed": 5}


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("[1]", "must be a JSON object {...}, not list"),
        ("{", "is not valid JSON"),
        ("@/no/such/file", "cannot be read: No such file or directory"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_unreadable_settings_are_refused(argument: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match="nfp-config") as caught:
        read_settings_argument(argument)
    assert sentence in str(caught.value)


def test_binary_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_settings_argument(f"@{tmp_path / 'x'}")


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable_folder("--nfp-output-dir", str(tmp_path / "file"))
    check_writable_folder("--nfp-output-dir", str(tmp_path / "new" / "deep"))
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_flags(parser, PatchSet())
    flags.add_flags(parser, PatchSet())  # twice is once
    return parser.parse_args(argv)


def test_single_flags_win_over_the_settings() -> None:
    settings = '{"max_positions": 64, "epsilons": [0.3], "seed": 9}'
    config = flags.config_from_args(
        parse("--nfp-probe", "--nfp-config", settings, "--nfp-epsilon", "0.1,0.2")
    )
    assert config is not None
    assert (config.max_positions, config.epsilons, config.seed) == (64, (0.1, 0.2), 9)


def test_no_flag_means_no_probe() -> None:
    assert flags.config_from_args(parse()) is None
    assert flags.config_from_args(argparse.Namespace()) is None


def test_a_flag_without_the_probe_is_refused() -> None:
    args = parse("--nfp-probe", "--nfp-epsilon", "0.1")
    args.nfp_probe = False
    with pytest.raises(ConfigError, match="--nfp-epsilon has no effect without --nfp-probe"):
        flags.config_from_args(args)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--nfp-epsilon", "0.1"], "--nfp-epsilon has no effect without --nfp-probe"),
        (["--nfp-probe", "--nfp-output-dir", "/proc/nfp"], "'/proc/nfp' cannot be written"),
        (
            ["--nfp-probe", "--nfp-config", '{"start_profile": "/no/profile.json"}'],
            "start_profile: /no/profile.json cannot be read: No such file or directory",
        ),
        (
            ["--nfp-probe", "--nfp-config", '{"start_profile": "/proc/version"}'],
            "start_profile: ",
        ),
        (
            ["--nfp-probe", "--nfp-config", '{"hardware_file": "/no/hardware.json"}'],
            "hardware_file: hardware file /no/hardware.json cannot be read",
        ),
    ],
)
def test_flags_that_do_not_go_together_end_the_parse(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    command = parser.add_subparsers().add_parser("serve")  # as vLLM's command line does
    flags.add_flags(command, PatchSet())
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["serve", *argv])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"\S+ serve: error: ", line)
    assert sentence in line


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--nfp-max-positions", "9999", "must be a number of positions from 2 to 512, not 9999"),
        ("--nfp-max-positions", "x" * 500, f"{'x' * 500!r:.80} is not a number"),
        ("--nfp-epsilon", "much\nmore", "'much\\nmore' is not a number"),
        ("--nfp-overhead-budget", "2", "from 0 to 0.5, not 2.0"),
        ("--nfp-config", '{"bogus": 1}', "unknown field 'bogus'"),
        ("--nfp-config", "{", "is not valid JSON"),
        ("--nfp-config", "@/no/such/file", "/no/such/file"),
    ],
)
def test_a_bad_value_ends_the_parse_with_one_sentence_and_code_2(
    flag: str, value: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--nfp-probe", flag, value)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f": error: argument {flag}: " in line
    assert sentence in line


@pytest.mark.parametrize("argv", [["--nfp-epsilon"], ["--nfp-probe=1"], ["--other"]])
def test_what_argparse_itself_refuses_it_tells_in_its_own_way(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")


@pytest.mark.parametrize(
    ("argv", "environment", "expected"),
    [
        (["vllm", "serve", "m"], {}, False),
        (["vllm", "serve", "m", "--enforce-eager"], {}, False),
        (["vllm", "serve", "m", "--nfp-probe"], {}, True),
        (["vllm", "serve", "--help=all"], {}, True),
        (["vllm", "serve", "--config", "x.yaml"], {}, True),
        (["worker"], {ENV_VAR: "{}"}, True),
        (["worker"], {ENV_VAR: ""}, False),
    ],
)
def test_the_plugin_wakes_only_when_wanted(
    argv: list[str], environment: dict[str, str], expected: bool
) -> None:
    assert plugin.wanted(argv, environment) is expected


def test_graphs_have_other_limits_where_several_ranks_make_theirs_at_the_start() -> None:
    alone, together = ProbeConfig().graph_limits(), ProbeConfig().graph_limits(ranks=2)
    assert (alone.memory_mib, alone.host_mib, alone.shared_pool) == (64, 64, True)
    assert (together.memory_mib, together.host_mib, together.shared_pool) == (2048, None, False)
    assert alone.capture_seconds + ProbeConfig().startup_seconds <= 5.0
    given = config_from_mapping(
        {
            "graph_memory_mib": 0,
            "host_memory_mib": 9,
            "share_graph_pool": False,
            "capture_seconds": 0,
        }
    )
    for ranks in (1, 8):
        limits = given.graph_limits(ranks)
        assert (limits.memory_mib, limits.shared_pool, limits.capture_seconds) == (0, False, 0.0)
        assert limits.host_mib == 9
