"""Whatever a file holds or is, its reader says so in one sentence, soon and in bounded memory."""

from __future__ import annotations

import copy
import dataclasses
import errno
import gzip
import json
import os
import re
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import DENSE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_nfp import demo, doctor
from vllm_nfp.calibrate.points import (
    Curve,
    Kernel,
    KernelSamples,
    SampleError,
    Series,
    read_samples,
    write_samples,
)
from vllm_nfp.cli import main
from vllm_nfp.config import ConfigError, ProbeConfig, config_from_mapping, read_settings_argument
from vllm_nfp.doctor import machine
from vllm_nfp.doctor.facts import Facts
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.curve_set import CurveSet, read_curves, write_curves
from vllm_nfp.files import read_bytes, write_whole
from vllm_nfp.principle import HardwareError, target_of
from vllm_nfp.principle.hardware_file import read_hardware_file, write_hardware_file
from vllm_nfp.principle.model_files import load_config
from vllm_nfp.principle.shape import ShapeError
from vllm_nfp.results.control import (
    ControlSnapshot,
    ControlState,
    DraftChoice,
    DraftStepLatency,
    read_control,
)
from vllm_nfp.results.profile import Profile, ProfileError, load_profile, profile_of, save_profile
from vllm_nfp.results.snapshot import Snapshot, SnapshotError, read_snapshot, write_snapshot
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.process import ProcessError
from vllm_nfp.start.server import running_server
from vllm_nfp.strict_json import encode
from vllm_nfp.types import (
    Boundary,
    CurvePoint,
    Device,
    Environment,
    LayerHistogram,
    LiveStep,
    ModelDescription,
    Prediction,
    State,
)

SNAPSHOT = Snapshot(
    "m",
    "0",
    State.STEADY,
    probes={"measured": 3},
    boundaries=(Boundary("model", 8, 1024, 0.1, 2, 1, 2, True, 2),),
    curves=(
        CurvePoint("model", 8, 1024, 1, 12, 0.0070, 1.0, 1.0, 1.0, "full", 0.0069, 0.0071),
        CurvePoint("model", 8, 1024, 2, 6, 0.0071, 1.01, 1.0, None, "full"),
    ),
    predictions=(Prediction("model", 8, 1024, 0.1, 3, 4, "memory"),),
    layers=(LayerHistogram(0, "attention", (1e-5, 1e-4), (1, 2, 2), 3e-5),),
    live=LiveStep(8, 900, 1),
)
CONTROL = ControlSnapshot(
    "m",
    "0",
    ControlState.DECIDING,
    rows=(DraftChoice(8, 1024, 3, 2, "faster", 1.1),),
    times=(DraftStepLatency(8, 1024, 3, 20, 0.007),),
    acceptance=(0.8,),
    decisions={"faster": 1},
    draft_seconds={"8": 1e-4},
)
ENVIRONMENT = Environment(
    1795530169.0, Device("cuda", "H100", "580.1", 132, 80 << 30), "0.1.0", "0.32.0", "2.13", None,
    "3.12.3",
)  # fmt: skip


def _write_profile(path: Path) -> None:
    kept = dataclasses.replace(SNAPSHOT, layers=())
    save_profile(
        path,
        profile_of(kept, ENVIRONMENT, ModelDescription("m"), ProbeConfig().for_server(32, 16384)),
    )


def _write_samples(path: Path) -> None:
    curve = Curve(Series(Kernel.ATTENTION, 8, 1024), (1, 2, 4), ((1e-5,), (1e-5,), (2e-5,)))
    write_samples(path, KernelSamples("m", dict(DENSE), {"device": {"name": "H100"}}, (curve,)))


def _write_curves(path: Path) -> None:
    curves = [StepCurve(b, 1024, 1e-3, ((1, 1.0), (2, 1.1), (4, 1.5)), 4) for b in (1, 8)]
    write_curves(path, CurveSet.of([*curves, StepCurve(1, 4096, 2e-3, ((1, 1.0),))]))


def _write_settings(path: Path) -> None:
    path.write_text(json.dumps({"epsilons": [0.1], "batch_sizes": [1, 8], "seed": 3}))


def _write_model(path: Path) -> None:
    path.write_text(json.dumps(DENSE))


def _read_settings(path: Path) -> object:
    return config_from_mapping(read_settings_argument(f"@{path}"))


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of file: its name, who writes and reads it, and the only error that may come."""

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], object]
    error: type[Exception]


KINDS = {
    "profile": Kind("profile.json", _write_profile, load_profile, ProfileError),
    "snapshot": Kind(
        "engine-0.json", lambda p: write_snapshot(p, SNAPSHOT), read_snapshot, SnapshotError
    ),
    "control": Kind(
        "control-0.json", lambda p: write_whole(p, encode(CONTROL)), read_control, SnapshotError
    ),
    "curves": Kind("curves-0.jsonl", _write_curves, read_curves, SnapshotError),
    "hardware": Kind(
        "h100.json",
        lambda path: write_hardware_file(path, target_of("H100-SXM")),
        read_hardware_file,
        HardwareError,
    ),
    "samples": Kind("m.jsonl", _write_samples, read_samples, SampleError),
    "settings": Kind("settings.json", _write_settings, _read_settings, ConfigError),
    "model": Kind("config.json", _write_model, load_config, ShapeError),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)

DEEP = "nested lists"


def fresh(value: Any) -> Any:
    """A value that no other place of the document shares."""
    if value is not DEEP:
        return copy.deepcopy(value)
    nested: list[Any] = []
    for _ in range(400):
        nested = [nested]
    return nested


HOSTILE = (
    None, True, -1, 0, 1 << 60, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\0", "\ud800",
    "\x1b[31m", "[/bold]", "a" * 100_000, [], {}, [[]], {"": {}}, ["model"], [1] * 5000, DEEP,
)  # fmt: skip


def read_or_refuse(kind: Kind, path: Path) -> str | None:
    """The sentence of the refusal; None if the file is taken. Any other error fails the test."""
    try:
        kind.read(path)
    except kind.error as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return str(error)
    except OSError:
        assert kind.error is SnapshotError, "a snapshot's reader passes on what the system says"
        return "OSError"
    return None


@each_kind
def test_what_is_written_can_be_read(kind: Kind, tmp_path: Path) -> None:
    kind.write(tmp_path / kind.name)
    assert read_or_refuse(kind, tmp_path / kind.name) is None


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in items:
        inner = (*path, key)
        found += _places(entry, inner) if isinstance(entry, (dict, list)) else [inner]
    return found


@each_kind
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_value_of_any_other_kind_is_taken_or_refused(
    kind: Kind, tmp_path: Path, data: st.DataObject
) -> None:
    """One to three places of a good file hold something else, or lack, or have company."""
    path = tmp_path / kind.name
    kind.write(path)
    lines = (
        [json.loads(line) for line in path.read_text().splitlines()]
        if (kind.name.endswith("jsonl"))
        else [json.loads(path.read_text())]
    )
    document: Any = lines
    places = [place for place in _places(document) if place]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places))
        holder = document
        with suppress(KeyError, IndexError, TypeError):  # gone by an earlier change
            for key in place[:-1]:
                holder = holder[key]
        what = data.draw(st.sampled_from(("replace", "remove", "add")))
        if what == "remove" and isinstance(holder, dict):
            holder.pop(place[-1], None)
        elif what == "add" and isinstance(holder, dict):
            holder[data.draw(st.sampled_from(("", "x" * 5000, "\ud800", "\n", "__class__")))] = 1
        elif isinstance(holder, dict) or (
            isinstance(holder, list) and place[-1] in range(len(holder))
        ):
            holder[place[-1]] = fresh(data.draw(st.sampled_from(HOSTILE)))
    path.write_text("\n".join(json.dumps(line) for line in document))
    read_or_refuse(kind, path)


@each_kind
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_cut_off_or_with_odd_bytes_is_taken_or_refused(
    kind: Kind, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / kind.name
    kind.write(path)
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    odd = data.draw(st.sampled_from((b"", b"\0", b"\xff\xfe", b"}", b"]", b'"', b"1" * 5000, b"[")))
    content[where : where + data.draw(st.integers(0, 50))] = odd
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path.write_bytes(content)
    read_or_refuse(kind, path)


@each_kind
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(kind: Kind, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / kind.name
    path.write_bytes(content)
    sentence = read_or_refuse(kind, path)
    if kind.name not in ("settings.json", "config.json"):  # which may be an empty object
        assert sentence is not None


NOT_JSON = {
    "empty": b"",
    "deep": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 100_000,
    "many digits": b'{"schema": ' + b"9" * 1_000_000 + b"}",
    "twice": b'{"schema": 1, "schema": 1}',
    "twice within": b'{"a": {"b": 1, "b": 2}}',
    "a list": b"[]",
    "text": b'"x"',
    "utf-16": '{"schema": 1}'.encode("utf-16"),
    "a null character": b'{"schema": 1}\0',
}


@each_kind
@pytest.mark.timeout(300)
@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_no_such_file_is_refused(kind: Kind, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / kind.name
    path.write_bytes(content)
    sentence = read_or_refuse(kind, path)
    # A model's config.json is not ours: what other readers of it pass over is passed over.
    assert sentence is not None or kind.error is ShapeError


def _odd_paths(folder: Path) -> dict[str, Path]:
    made = {
        name: folder / name for name in ("fifo", "socket", "loop", "nowhere", "folder", "sparse")
    }
    os.mkfifo(made["fifo"])
    before = Path.cwd()
    os.chdir(folder)  # a socket's path must be short, and the folder's need not be
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(before)
    made["loop"].symlink_to(made["loop"])
    made["nowhere"].symlink_to(folder / "missing")
    made["folder"].mkdir()
    made["sparse"].touch()
    os.truncate(made["sparse"], 20 << 30)
    return {**made, "zero": Path("/dev/zero"), "missing": folder / "none", "null": Path("a\0b")}


@each_kind
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    ["fifo", "socket", "loop", "nowhere", "folder", "sparse", "zero", "missing", "null"],
)
def test_what_is_no_file_is_refused_at_once(
    kind: Kind, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A pipe without a writer would be waited for, a device or sparse file read without end."""
    path = _odd_paths(tmp_path_factory.mktemp("odd"))[name]
    tracemalloc.start()
    try:
        refusal: str | None
        try:
            refusal = read_or_refuse(kind, path)
        except ValueError:  # as of every other call of the system with such a path
            assert (name, kind.error) == ("null", SnapshotError)
            refusal = "ValueError"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refusal is not None or (name, kind.error) == ("folder", ShapeError)
    assert peak < 3 * (64 << 20)


def test_a_snapshot_is_not_read_through_a_link(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "real", SNAPSHOT)
    (tmp_path / "engine-0.json").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match=re.escape("Too many levels of symbolic links")):
        read_snapshot(tmp_path / "engine-0.json")


def test_a_compressed_file_of_samples_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (80 << 20), 9))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(SampleError, match="more than 64 MiB"):
        read_samples(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"engine": "../../x"}, "has the engine index '../../x', no number"),
        ({"engine": "²"}, "has the engine index '²', no number"),
        ({"probes": {"a\nb": 1}}, r"holds the strange label 'a\nb'"),
        ({"probes": {f"outcome_{i}": 1 for i in range(40)}}, "more than 32 kinds of labels"),
        (
            {"curves": (dataclasses.replace(SNAPSHOT.curves[0], module='x"}'),)},
            "curves[0].module must be one of",
        ),
        ({"boundaries": SNAPSHOT.boundaries * 65537}, "expected 'array' of length <= 65536"),
        ({"layers": (LayerHistogram(0, "attention", (1.0,), (1,), 1.0),)}, "bounds and counts"),
    ],
)
def test_a_snapshot_that_would_make_strange_or_many_labels_is_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "engine-0.json"
    write_snapshot(path, dataclasses.replace(SNAPSHOT, **change))
    with pytest.raises(SnapshotError, match=re.escape(sentence)):
        read_snapshot(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"engine": "../0"}, "has the engine index '../0', no number"),
        ({"decisions": {"so\nso": 1}}, r"holds the strange label 'so\nso'"),
        ({"draft_seconds": {"8 or so": 1.0}}, "draft_seconds of what is no batch size"),
        ({"times": CONTROL.times * 2000}, "times: expected 'array' of length <= 1536"),
    ],
)
def test_the_controllers_snapshot_is_checked_alike(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "control-0.json"
    write_whole(path, encode(dataclasses.replace(CONTROL, **change)))
    with pytest.raises(SnapshotError, match=re.escape(sentence)):
        read_control(path)


def test_numbers_beyond_all_floats_are_refused_like_others() -> None:
    with pytest.raises(ConfigError, match=r"overhead_budget must be a fraction from 0 to 0\.5"):
        config_from_mapping({"overhead_budget": 10**400})


COMMANDS = {
    "report": (["report", "{}", "-o", "{out}"], "profile"),
    "compare": (["compare", "{}", "{}"], "profile"),
    "recommend": (["recommend", "{}", "--acceptance", "0.8"], "profile"),
    "predict": (["predict", "{model}", "--hardware", "{}"], "hardware"),
    "predict MODEL": (["predict", "{}", "--hardware", "H100-SXM"], "model"),
    "measure": (["measure", "{model}", "--nfp-config", "@{}", "-o", "{out}"], "settings"),
    "calibrate": (["calibrate", "--from-samples", "{folder}", "-o", "{out}"], "samples"),
}


@pytest.mark.parametrize("content", [*NOT_JSON.values(), b"{}", b'{"\\ud800": "\\ud800"}'])
@pytest.mark.parametrize(("arguments", "name"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_says_one_sentence_and_ends_with_code_2(
    arguments: list[str], name: str, content: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    path = folder / KINDS[name].name
    path.write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    # Settings of no field are good ones: the run is then refused for what the file lacks not.
    given = {"{}": str(path), "@{}": f"@{path}", "{out}": str(tmp_path / "out"),
             "{model}": str(tmp_path), "{folder}": str(folder)}  # fmt: skip
    if name == "settings" and content == b"{}":
        path.write_bytes(b'{"epsilons": []}')
    result = CliRunner().invoke(main, [given.get(word, word) for word in arguments])
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.stderr.splitlines()[-1] == line
    assert not (tmp_path / "out").exists()


def test_a_link_in_the_way_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out.json").symlink_to(victim)
    write_whole(tmp_path / "out.json", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "out.json").read_text() == "new"
    assert not (tmp_path / "out.json").is_symlink()


def test_the_temporary_file_is_one_that_nobody_has_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("vllm_nfp.files.secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".nfp-guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "out.json", "new")
    assert victim.read_text() == "precious"


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_whole(path, "x")
    assert read_bytes(path, 10) == b"x"


# Where results are written


OUTPUTS = {
    "report": ["report", "{profile}", "-o", "{out}"],
    "plot": ["predict", "{model}", "--hardware", "H100-SXM", "--plot", "{out}"],
    "calibrate": ["calibrate", "--from-samples", "{samples}", "--hardware", "H100-SXM", "--force",
                  "-o", "{out}"],
    "measure": ["measure", "{model}", "-o", "{out}"],
}  # fmt: skip
OCCUPIED = {
    "fifo": "it is not a regular file",
    "socket": "it is not a regular file",
    "device": "it is not a regular file",
    "link to a fifo": "it is not a regular file",
    "link to a folder": "is a directory",
    "folder": "is a directory",
    "a name too long": "File name too long",
    "beside nothing": "does not exist",
    "under a file": "does not exist",
    "no name": "names no file",
}


def occupied(folder: Path, name: str, ending: str) -> Path:
    """A path where no result may be put; what is there must stay."""
    path = folder / f"out{ending}"
    if name == "fifo":
        os.mkfifo(path)
    elif name == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif name == "device":  # not the device itself: root could really replace it
        path.symlink_to("/dev/null")
    elif name == "link to a fifo":
        os.mkfifo(folder / "pipe")
        path.symlink_to(folder / "pipe")
    elif name == "link to a folder":
        path.symlink_to(folder)
    elif name == "folder":
        path.mkdir()
    elif name == "a name too long":
        return folder / ("n" * 300 + ending)
    elif name == "beside nothing":
        return folder / "none" / path.name
    elif name == "under a file":
        return folder / "config.json" / path.name
    else:
        return Path()
    return path


def what_lies_at(path: Path) -> tuple[int, ...] | None:
    """Which file it is and when it was written; not when it was read, which looking changes."""
    if not os.path.lexists(path):
        return None
    found = os.lstat(path)
    return (found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def given_words(folder: Path, words: list[str], out: Path | str) -> list[str]:
    (folder / "config.json").write_text(json.dumps(DENSE))
    _write_profile(folder / "profile.json")
    (folder / "samples").mkdir()
    _write_samples(folder / "samples" / "m.jsonl")
    places = {"profile": folder / "profile.json", "model": folder, "samples": folder / "samples"}
    return [word.format(**places, out=out) for word in words]


@pytest.mark.parametrize("name", OCCUPIED)
@pytest.mark.parametrize("words", OUTPUTS.values(), ids=OUTPUTS)
def test_a_result_replaces_nothing_but_a_file(
    words: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_nfp.cli.measure._run", lambda *_, **__: pytest.fail("it measured"))
    (tmp_path / "config.json").write_text("")
    out = occupied(tmp_path, name, ".svg" if words[0] == "predict" else ".x")
    before = what_lies_at(out)
    command = given_words(tmp_path, words, "" if name == "no name" else out)
    if words[0] == "predict" and name == "no name":
        command[-1] = "x/.."  # a plot's ending is looked at first
        (tmp_path / "x").mkdir()
        monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2, result.output
    assert OCCUPIED[name] in result.stderr or "is a directory" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert what_lies_at(out) == before or name == "no name"
    assert not list(tmp_path.glob("**/.nfp-*"))


@pytest.mark.parametrize("name", ["fifo", "socket", "device", "link to a fifo"])
def test_no_file_takes_the_place_of_a_pipe_or_a_device(name: str, tmp_path: Path) -> None:
    """As root it would be replaced for the whole machine."""
    out = occupied(tmp_path, name, "")
    before = what_lies_at(out)
    with pytest.raises(OSError, match="it is not a regular file"):
        write_whole(out, "x")
    assert what_lies_at(out) == before
    assert {entry.name for entry in tmp_path.iterdir()} <= {"out", "pipe"}


@pytest.mark.parametrize("way", ["itself", "a link to it", "it through a link", "a hard link"])
def test_a_report_does_not_replace_its_profile(way: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    _write_profile(profile)
    content = profile.read_bytes()
    out = tmp_path / "out"
    if way == "itself":
        out = tmp_path / "." / "profile.json"
    elif way == "a link to it":
        out.symlink_to(profile)
    elif way == "it through a link":
        (tmp_path / "folder").symlink_to(tmp_path)
        out = tmp_path / "folder" / "profile.json"
    else:
        out.hardlink_to(profile)
    result = CliRunner().invoke(main, ["report", str(profile), "-o", str(out)])
    assert result.exit_code == 2
    assert result.stderr == f"Error: {out} is the input and is not overwritten: give another path\n"
    assert profile.read_bytes() == out.read_bytes() == content


def test_measuring_does_not_replace_the_models_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_nfp.cli.measure._run", lambda *_, **__: pytest.fail("it measured"))
    words = given_words(tmp_path, OUTPUTS["measure"], tmp_path / "config.json")
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "is the input and is not overwritten" in result.stderr


@pytest.mark.parametrize("command", ["measure", "calibrate"])
def test_what_took_long_to_find_is_kept_where_its_folder_is_gone(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, temporary = tmp_path / "out", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    words = given_words(tmp_path, OUTPUTS[command], folder / "result.json")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    profile = load_profile(tmp_path / "profile.json")

    def work(*_: object, **__: object) -> object:
        folder.rmdir()
        return profile

    from vllm_nfp.cli import calibrate as command_module

    fit = command_module._fit
    monkeypatch.setattr("vllm_nfp.cli.measure._run", work)
    monkeypatch.setattr(command_module, "_fit", lambda *args: (work(), fit(*args))[1])
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    (kept,) = temporary.glob("*/result.json")
    assert f"cannot be written: No such file or directory; the result is kept in {kept}" in (
        result.stderr
    )
    assert load_profile(kept) == profile if command == "measure" else read_hardware_file(kept)


def test_a_folder_of_work_that_was_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_profile(tmp_path / "profile.json")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    result = CliRunner().invoke(main, ["report", str(tmp_path / "profile.json")])
    assert result.exit_code == 2, result.output
    assert "report.html cannot be written (No such file or directory)" in result.stderr


def test_a_large_file_in_the_way_of_a_dashboard_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").touch()
    os.truncate(tmp_path / "prometheus.yml", 20 << 30)
    tracemalloc.start()
    try:
        result = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path)])
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert result.exit_code == 2
    assert "exists and differs" in result.stderr


# Standard output, and the temporary directory


def run_cli(words: list[str], **changes: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **changes.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "vllm_nfp.cli", *words], stdin=subprocess.DEVNULL, check=False,
        stderr=subprocess.PIPE, text=True, timeout=60, env=environment, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("words", [["--version"], ["predict", "{model}", "--hardware", "H100-SXM"]])
def test_output_that_cannot_be_written_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run_cli(given_words(tmp_path, words, ""), stdout=full)
    assert done.stderr == "Error: the output cannot be written: No space left on device\n"
    assert done.returncode == 2


def test_a_terminal_without_greek_letters_shows_the_rest(tmp_path: Path) -> None:
    words = ["predict", "{model}", "--hardware", "H100-SXM", "--explain"]
    done = run_cli(given_words(tmp_path, words, ""), stdout=subprocess.PIPE,
                   env={"PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert " ?s " in done.stdout, "microseconds"


@pytest.mark.parametrize("words", [OUTPUTS["measure"], ["demo"], ["calibrate", "--trial"]])
def test_no_temporary_folder_is_one_sentence(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")

    monkeypatch.setattr("vllm_nfp.cli.common.mkdtemp", full)
    result = CliRunner().invoke(main, given_words(tmp_path, words, tmp_path / "out"))
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: no temporary directory can be written (No space left on device): set TMPDIR to a "
        "directory with free space\n"
    )


def test_the_doctor_finds_that_there_is_no_temporary_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(machine.tempfile, "gettempdir", none)
    facts = Facts(doctor.Question(), {}, None, doctor.Answer())
    (finding,) = machine.temporary_folder(facts)
    assert finding.status is doctor.Status.BROKEN
    assert "No usable temporary directory" in finding.found
    assert "TMPDIR" in finding.advice


# What others wrote, shown


NAMES = {
    "escapes": "\x1b[2J\x1b]0;title\x07",
    "another direction": "\u202egnp.exe\u2066",
    "lines": "a\r\nb\x85c\u2028d",
    "markup of the terminal": "[/bold][link=http://evil]x[/link]",
    "markup of a page": "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>",
    "template": "{{ 7 * 7 }}{% raw %}",
    "long": "a" * 5000,
    "nothing": "",
}
STEERING = "\x1b\x07\r\x85\u2028\u202e\u2066"


def named(value: Any, name: str) -> Any:
    """The same with each text replaced that says nothing to a reader of the file."""
    if isinstance(value, dict):
        kept = ("kind", "module", "state", "type", "basis")
        return {k: v if k in kept else named(v, name) for k, v in value.items()}
    if isinstance(value, list):
        return [named(entry, name) for entry in value]
    return name if isinstance(value, str) else value


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_in_a_profile_cannot_steer_a_terminal_or_a_page(
    name: str, tmp_path: Path, dense_profile: Profile
) -> None:
    values = named(dense_profile.to_dict(), name)
    values["run"] |= {"skipped_cells": {name: name}, "state": "disabled", "probes": {name: 1}}
    path, page = tmp_path / "p.json", tmp_path / "p.html"
    path.write_text(json.dumps(values))
    save_profile(tmp_path / "q.json", dense_profile)
    for words in (
        ["compare", str(path), str(tmp_path / "q.json")],
        ["recommend", str(path), "--acceptance", "0.8"],
        ["report", str(path), "-o", str(page)],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        assert not set(STEERING) & set(result.output), words
    text = page.read_text()
    assert not set(STEERING) & set(text)
    assert "<script" not in text and "<img" not in text
    if "{{" in name:
        assert "{{ 7 * 7 }}" in text


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_in_a_hardware_file_cannot_steer_a_terminal(name: str, tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    write_hardware_file(path, target_of("H100-SXM"))
    values = json.loads(path.read_text())
    values["hardware"]["name"] = values["calibration"]["source"] = name
    path.write_text(json.dumps(values))
    for words in (
        ["predict", "{model}", "--hardware", str(path)],
        ["predict", "{model}", "--hardware", str(path), "--explain"],
        ["calibrate", "--from-samples", "{samples}", "--hardware", str(path), "-o", "{out}"],
    ):
        folder = tmp_path / f"{len(words)}"
        folder.mkdir()
        result = CliRunner().invoke(main, given_words(folder, words, folder / "out.json"))
        assert result.exit_code in (0, 2), result.output
        assert not set(STEERING) & set(result.output), words


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("environment", "cudagraph_capture_sizes", list(range(1, 100_000))),
        ("environment", "attention_backends", ["x"] * 100_000),
        ("run", "skipped_cells", {f"B={i}": "x" for i in range(100_000)}),
        ("run", "probes", {f"x{i}": i for i in range(100_000)}),
        ("probe", "batch_sizes", list(range(1, 100_000))),
        ("probe", "epsilons", [i * 1e-6 for i in range(1, 100_000)]),
    ],
)
def test_a_list_that_would_fill_a_page_is_refused(
    section: str, field: str, value: object, tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    _write_profile(path)
    values = json.loads(path.read_text())
    values[section][field] = value
    path.write_text(json.dumps(values))
    with pytest.raises(ProfileError, match=f"{field}: expected .* of length <= 4096"):
        load_profile(path)


@pytest.mark.parametrize("what", ["another model", "a longer file", "a folder", "a fifo"])
def test_the_demo_leaves_the_models_of_others_alone(what: str, tmp_path: Path) -> None:
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    if what == "a folder":
        path.mkdir()
    elif what == "a fifo":
        os.mkfifo(path)
    else:
        path.write_text("{}" if what == "another model" else "{}" * 1000)
    before = what_lies_at(path)
    result = CliRunner().invoke(main, ["demo", "--folder", str(tmp_path)])
    assert result.exit_code == 2, result.output
    assert str(path) in result.stderr
    assert what_lies_at(path) == before


def test_the_demo_takes_its_own_folder_again(tmp_path: Path) -> None:
    for _ in range(2):
        assert (demo.make_model(tmp_path / "model") / "config.json").is_file()


def test_a_log_is_not_written_through_a_link_and_into_no_pipe(tmp_path: Path) -> None:
    victim, log = tmp_path / "victim", tmp_path / "server.log"
    victim.write_text("precious")
    log.symlink_to(victim)
    command = [sys.executable, "-c", "print('last words')"]
    with (
        pytest.raises(ProcessError, match="last words"),
        running_server(command, log, free_port()),
    ):
        pass
    assert victim.read_text() == "precious"
    log.unlink()
    os.mkfifo(log)
    with (
        pytest.raises(OSError, match="it is not a regular file"),
        running_server(command, log, free_port()),
    ):
        pass
