"""What docs/security.md promises, one section after the other."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from conftest import DENSE
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from test_hostile_files import ENVIRONMENT, SNAPSHOT

from vllm_nfp.cli import main
from vllm_nfp.config import ENV_VAR, ConfigError, ProbeConfig, check_writable_folder
from vllm_nfp.dashboards import ExportError, export
from vllm_nfp.files import open_to_append
from vllm_nfp.metrics.collector import NfpCollector
from vllm_nfp.metrics.families import families_of
from vllm_nfp.principle import target_of
from vllm_nfp.principle.hardware_file import write_hardware_file
from vllm_nfp.results.profile import profile_file, profile_of, save_profile
from vllm_nfp.results.snapshot import Snapshot, SnapshotError, engine_file, write_snapshot
from vllm_nfp.types import ModelDescription

SECRETS = {
    "HF_TOKEN": "hf_nfptestsecret0001",
    "HUGGING_FACE_HUB_TOKEN": "hf_nfptestsecret0002",
    "VLLM_API_KEY": "sk-nfptestsecret0003",
    "OPENAI_API_KEY": "sk-nfptestsecret0004",
    "AWS_SECRET_ACCESS_KEY": "nfptestsecret0005",
}


def exposition(*snapshots: Snapshot) -> str:
    class Families:
        def collect(self) -> Iterator[object]:
            return families_of(snapshots)

    registry = CollectorRegistry()
    registry.register(Families())  # type: ignore[arg-type]
    return generate_latest(registry).decode()


def served(folder: Path) -> str:
    registry = CollectorRegistry()
    registry.register(NfpCollector(str(folder)))
    return generate_latest(registry).decode()


def series(text: str) -> list[tuple[str, dict[str, str]]]:
    return [
        (sample.name, sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


# Labels


NASTY = ('"', "\\", "\n", "{", "}", 'x"} 1\nvllm_nfp_evil{a="', "\ud800", "\udcff", "\0", "# EOF")


@settings(max_examples=100)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(NASTY)).map("".join)))
def test_no_model_name_breaks_the_exposition(name: str) -> None:
    expected = series(exposition(SNAPSHOT))
    found = series(exposition(dataclasses.replace(SNAPSHOT, model_name=name)))
    kept = name.encode("utf-8", "replace").decode()
    assert found == [(metric, {**labels, "model_name": kept}) for metric, labels in expected]


def test_a_name_without_end_is_cut() -> None:
    text = exposition(dataclasses.replace(SNAPSHOT, model_name="a" * 10_000_000))
    assert len(text) < 200 * 5000


def test_files_that_are_none_of_an_engine_add_no_series(tmp_path: Path) -> None:
    write_snapshot(engine_file(str(tmp_path), "0"), SNAPSHOT)
    alone = served(tmp_path)
    write_snapshot(tmp_path / "engine-1.json", SNAPSHOT)  # speaks for engine 0 as well
    write_snapshot(tmp_path / "engine-x.json", dataclasses.replace(SNAPSHOT, engine="7"))
    (tmp_path / "engine-2.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "engine-3.json")
    (tmp_path / "engine-4.json").mkdir()
    (tmp_path / "engine-5.json").write_bytes(b"[" * 100_000)
    strange = dataclasses.replace(SNAPSHOT, engine="6", probes={'x"} 1': 1})
    write_snapshot(tmp_path / "engine-6.json", strange)
    assert served(tmp_path) == alone


# Paths


@pytest.mark.parametrize("engine", ["../0", "0/../x", "", "-1", "0\0", "²", "٣", "1" * 40, "0\n"])
def test_an_engine_index_can_name_no_other_file(engine: str) -> None:
    with pytest.raises(SnapshotError, match="is not a number"):
        engine_file("/run", engine)
    with pytest.raises(ValueError, match="is not a number"):
        profile_file("/out", engine)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..", ".hidden", "a/b", "a b;c", "-o"])
def test_a_device_can_name_no_file_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hardware file's device gives `calibrate` the default name of its output."""
    from vllm_nfp.cli.calibrate import _output_path

    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    target = target_of("H100-SXM")
    hardware = dataclasses.replace(target.hardware, name=name)
    path = _output_path(None, dataclasses.replace(target, hardware=hardware), force=False)
    assert path.absolute().parent == folder
    assert not path.name.startswith((".", "-"))


def test_dashboards_are_not_exported_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "grafana").symlink_to(elsewhere)
    for force in (False, True):
        with pytest.raises(ExportError, match="through a symbolic link: nothing was written"):
            export(folder, force)
    assert not list(elsewhere.iterdir())
    assert [entry.name for entry in folder.iterdir()] == ["grafana"]


def test_the_export_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert export(tmp_path / "link").written


# Files that are written


def test_the_log_of_samples_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "samples-0.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        open_to_append(tmp_path / "samples-0.jsonl")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match=r"No such device|not a regular file"):
        open_to_append(tmp_path / "fifo")
    assert victim.read_text() == "precious"


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    for word in ("a", "b"):
        with open_to_append(tmp_path / "log") as log:
            log.write(word)
    assert (tmp_path / "log").read_text() == "ab"


def test_the_trial_of_a_folder_leaves_nothing_and_writes_through_no_link(tmp_path: Path) -> None:
    check_writable_folder("--nfp-output-dir", str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable_folder("--nfp-output-dir", "/proc/nfp")


def test_the_hand_over_folder_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    from vllm_nfp.adapter import switch_on
    from vllm_nfp.results import run_folder

    monkeypatch.setattr(run_folder.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(ENV_VAR, "")
    monkeypatch.setattr(run_folder.atexit, "register", lambda call: None)
    before = os.umask(0)
    try:
        run_dir = switch_on.publish_settings(ProbeConfig(run_dir="/etc")).run_dir
    finally:
        os.umask(before)
    assert run_dir is not None and Path(run_dir).parent == tmp_path, "a given run_dir is not taken"
    assert stat.S_IMODE(os.stat(run_dir).st_mode) == 0o700
    assert os.stat(run_dir).st_uid == os.getuid()


# Secrets


def test_no_secret_reaches_environment_profile_or_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from vllm_nfp.adapter.environment import describe_environment, describe_model

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "m", "--api-key", "sk-nfptestsecret0006"])
    secret = "hf_nfptestsecret0007"
    text = SimpleNamespace(num_hidden_layers=3, vocab_size=512, hf_token=secret)
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            dtype="torch.bfloat16", quantization=None, enforce_eager=True, max_model_len=512,
            hf_token=secret, hf_text_config=text, hf_overrides={},
            hf_config=SimpleNamespace(architectures=["Qwen3ForCausalLM"], token=secret),
        ),
        compilation_config=SimpleNamespace(cudagraph_mode=None, cudagraph_capture_sizes=None),
        scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=512),
        cache_config=SimpleNamespace(cache_dtype="auto", num_gpu_blocks=9, block_size=16),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        api_key=secret,
    )  # fmt: skip
    environment = describe_environment(config, ("CPU_ATTN",))
    kept = dataclasses.replace(SNAPSHOT, layers=())
    profile = profile_of(
        kept, environment, describe_model("m", config), ProbeConfig().for_server(32, 16384)
    )
    path = tmp_path / "profile.json"
    save_profile(path, profile)
    out = tmp_path / "report.html"
    result = CliRunner().invoke(main, ["report", str(path), "-o", str(out)])
    assert result.exit_code == 0, result.output
    compared = CliRunner().invoke(main, ["compare", str(path), str(path), "--all", "--json"])
    assert json.loads(compared.stdout)["nfp"], "nothing was compared"
    settings_text = ProbeConfig(output_dir=str(tmp_path)).to_json()
    for written in (path.read_text(), out.read_text(), compared.output, settings_text):
        assert "nfptestsecret" not in written
    assert '"num_layers": 3' in path.read_text(), "the record is empty"


def test_a_profile_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    config = ProbeConfig(output_dir=str(tmp_path), run_dir="/run/nfp").for_server(8, 1024)
    profile = profile_of(SNAPSHOT, ENVIRONMENT, ModelDescription("m"), config)
    assert str(tmp_path) not in json.dumps(profile.to_dict())
    assert "/run/nfp" not in json.dumps(profile.to_dict())


# Network and code


def test_no_socket_is_bound_and_nothing_is_run(tmp_path: Path) -> None:
    """Settings in, results out through the hand-over folder and a scrape, and every reader."""
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    write_hardware_file(tmp_path / "h.json", target_of("H100-SXM"))
    save_profile(
        tmp_path / "p.json",
        profile_of(
            SNAPSHOT, ENVIRONMENT, ModelDescription("m"), ProbeConfig().for_server(32, 16384)
        ),
    )
    program = """
import sys
FORBIDDEN = ("socket.bind", "socket.listen", "socket.connect", "subprocess.Popen", "os.system",
             "os.exec", "pickle.find_class")
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in FORBIDDEN else None)
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest
import vllm_nfp.plugin
from vllm_nfp.cli import main
from vllm_nfp.metrics.collector import NfpCollector
from vllm_nfp.results.snapshot import Snapshot, State, engine_file, write_snapshot
folder = sys.argv[1]
vllm_nfp.plugin.register()
write_snapshot(engine_file(folder, "0"), Snapshot("m", "0", State.WARMING))
registry = CollectorRegistry()
registry.register(NfpCollector(folder))
assert b"vllm_nfp_state" in generate_latest(registry)
for command in (["compare", "p.json", "p.json"], ["recommend", "p.json", "--acceptance", "0.8"],
                ["predict", ".", "--hardware", "h.json"], ["report", "p.json", "-o", "r.html"]):
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
assert not seen, seen
import socket
socket.socket().bind(("127.0.0.1", 0))
assert seen == ["socket.bind"], "it would have been seen"
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
