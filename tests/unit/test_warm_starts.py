"""What makes a second start of a benchmark's server faster: kept caches, byte code, one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.hosts import byte_code, kept_caches, start_phases  # noqa: E402
from benchmarks.serving import shapes  # noqa: E402


def filled(home: Path) -> dict[str, bytes]:
    """A home directory with both caches, and something else."""
    files = {
        ".cache/vllm/modelinfos/model.json": b"{}",
        ".cache/vllm/torch_compile_cache/torch_aot_compile/ab/rank_0_0/model": os.urandom(300_000),
        ".triton/cache/XYZ/kernel.cubin": os.urandom(100_000),
    }
    for name, content in {**files, ".cache/pip/wheel": b"other"}.items():
        path = home / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return files


def test_caches_come_back_from_their_parts(tmp_path: Path) -> None:
    files = filled(tmp_path / "home")
    parts = kept_caches.keep(tmp_path / "kept", tmp_path / "home", 150_000)
    assert [path.name for path in parts] == [f"caches.tar.xz.0{n}" for n in range(3)]
    assert all(path.stat().st_size <= 150_000 for path in parts)
    assert kept_caches.restore(tmp_path / "kept", tmp_path / "new") == len(files)
    found = {name: (tmp_path / "new" / name).read_bytes() for name in files}
    assert found == files
    assert not (tmp_path / "new/.cache/pip").exists()


def test_what_was_compiled_here_stays_and_older_parts_go(tmp_path: Path) -> None:
    filled(tmp_path / "home")
    kept_caches.keep(tmp_path / "kept", tmp_path / "home", 100_000)
    assert len(kept_caches.keep(tmp_path / "kept", tmp_path / "home", 1 << 20)) == 1
    own = tmp_path / "new/.cache/vllm/modelinfos/model.json"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"own")
    kept_caches.restore(tmp_path / "kept", tmp_path / "new")
    assert own.read_bytes() == b"own"
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_half_written_files_are_left_out(tmp_path: Path) -> None:
    files = filled(tmp_path / "home")
    half = tmp_path / "home/.cache/vllm/torch_compile_cache/torch_aot_compile/ab/model.77.tmp"
    half.write_bytes(b"half")
    kept_caches.keep(tmp_path / "kept", tmp_path / "home", 1 << 20)
    assert kept_caches.restore(tmp_path / "kept", tmp_path / "new") == len(files)


@pytest.mark.parametrize(
    ("parts", "reason"), [((), "holds no caches.tar.xz.00"), ((0, 2), "lacks a part: it holds 00")]
)
def test_missing_parts_are_named(
    parts: tuple[int, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in parts:
        (tmp_path / f"caches.tar.xz.0{number}").write_bytes(b"x")
    assert kept_caches.main(["restore", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err


def test_a_broken_part_and_no_caches_are_named(tmp_path: Path) -> None:
    (tmp_path / "caches.tar.xz.00").write_bytes(b"no archive")
    with pytest.raises(kept_caches.CacheError, match="cannot be unpacked"):
        kept_caches.restore(tmp_path, tmp_path / "new")
    with pytest.raises(kept_caches.CacheError, match="no caches below"):
        kept_caches.keep(tmp_path / "kept", tmp_path / "empty", 1)


def test_byte_code_is_written_where_it_is_forbidden_to_imports(tmp_path: Path) -> None:
    for name in ("one.py", "tests/two.py", "broken.py"):
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("X = 1\n" if name != "broken.py" else "def\n")
    run = (
        "from benchmarks.hosts import byte_code; byte_code.PACKAGES = ()\n"
        f"byte_code.main([{str(tmp_path)!r}])"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", run], env=environment, check=True)
    written = [path.name.split(".")[0] for path in tmp_path.rglob("*.pyc")]
    assert written == ["one"]


def test_packages_that_lie_elsewhere_are_compiled_too() -> None:
    package = Path(numpy.__file__).parent
    assert package in list(byte_code.folders(["/nowhere"]))
    assert package not in list(byte_code.folders([str(package.parent)]))


def test_a_shape_lies_in_one_folder_for_each_number_of_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    first, again = shapes.shared_model("qwen3-8b"), shapes.shared_model("qwen3-8b")
    fewer, head = shapes.shared_model("qwen3-8b", 4), shapes.shared_draft_head("qwen3-8b", "eagle3")
    assert first == again
    assert len({first, fewer, head}) == 3
    assert all(folder.is_relative_to(tmp_path) for folder in (first, fewer, head))
    assert json.loads((fewer / "config.json").read_text())["num_hidden_layers"] == 4


LOG = """\
(APIServer pid=1) INFO 11-28 23:59:40 [startup.py:96] non-default args: {'model': 'm'}
(APIServer pid=1) INFO 11-28 23:59:58 [model.py:744] Resolved architecture: Qwen3ForCausalLM
(EngineCore pid=2) INFO 11-29 00:00:17 [core.py:139] Initializing a V1 LLM engine (v0.33.0)
loading 1/2\rloading 2/2
(EngineCore pid=2) INFO 11-29 00:00:20 [model_runner.py:428] Model loading took 15 GiB memory
(EngineCore pid=2) INFO 11-29 00:00:24 [decorators.py:327] Directly load AOT compilation from path
(EngineCore pid=2) INFO 11-29 00:00:25 [monitor.py:62] [backbone] torch.compile took 4 s in total
(EngineCore pid=2) INFO 11-29 00:00:26 [monitor.py:62] [eagle_head] torch.compile took 1 s
"""


def test_the_phases_of_a_start_are_read_from_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text(LOG)
    start_phases.main([str(tmp_path / "log")])
    told = [line.split(" s  ") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(int(seconds), name) for seconds, name in told] == [
        (0, "imports of the API server"),
        (18, "inspection of the model"),
        (19, "imports of the engine core"),
        (3, "weights"),
        (4, "compiled code is loaded"),
        (1, "torch.compile"),
    ]
