""".ci/run tests what lies in the checkout, in a clone that is named as users' clones are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
COMMANDS = """```sh
echo "made in $PWD" > made && cat && vllm-nfp demo
```
other text
```sh
cat made && find . -name .git -prune -o -type f -print | sort && cat kept && echo "1 passed"
```
```sh
echo a third one, which is not run
```
"""
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder of another name, with spaces, that holds the script and a README."""
    folder = tmp_path / "some check out"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / ".ci" / "run")
    (folder / "README.md").write_text(COMMANDS)
    (folder / ".gitignore").write_text(".venv*/\n*.egg-info/\n__pycache__/\n")
    (folder / "kept").write_text("as committed\n")
    (folder / "gone").write_text("")
    for made in (".venv", "x.egg-info", "__pycache__"):
        (folder / made).mkdir()
        (folder / made / "made").write_text("")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a checkout's script, with programs of ours in the place of those it looks for."""
    programs, temporary = tmp_path / "bin", tmp_path / "t mp"
    programs.mkdir()
    temporary.mkdir()
    for name in ("apt-get", "chromium", "promtool", "ps"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)

    def run_script(
        folder: Path, path: str = os.environ["PATH"], cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", os.path.relpath(folder / ".ci" / "run", cwd or folder)],
            cwd=cwd or folder, capture_output=True, text=True, timeout=120, check=False,
            stdin=subprocess.PIPE,  # never written to, nor closed
            env={"PATH": f"{programs}{os.pathsep}{path}", "TMPDIR": str(temporary), "CI": "true",
                 "HOME": str(tmp_path), **variables},
        )  # fmt: skip
        assert list(temporary.iterdir()) == [], "the clone is left behind"
        return done

    return run_script


Run = Callable[..., subprocess.CompletedProcess[str]]


def shown(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The files of the clone and the last lines, from a run in a clone of the right name."""
    assert done.returncode == 0, done.stdout + done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("made in ") and Path(first[8:]).name == "vllm-nfp"
    assert lines[-1] == "1 passed", "the last line is the tests' own"
    return lines[:-1]


BASE = ["./.ci/run", "./.gitignore", "./README.md"]


@needs_git
def test_a_clone_of_the_right_name_is_tested(checkout: Path, run: Run) -> None:
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "All")
    assert shown(run(checkout)) == [*BASE, "./gone", "./kept", "./made", "as committed"]
    assert not (checkout / "made").exists(), "the checkout itself is left alone"


@needs_git
@pytest.mark.parametrize("depth", [[], ["--depth", "1"]], ids=["whole", "shallow"])
def test_what_is_not_committed_is_tested_too(
    checkout: Path, run: Run, tmp_path: Path, depth: list[str]
) -> None:
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    for subject in ("First", "Second"):
        git(checkout, "commit", "-qm", subject, "--allow-empty")
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", *depth, checkout.as_uri(), "other")
    git(other, "checkout", "-q", "--detach")
    (other / "kept").write_text("as changed\n")
    (other / "gone").unlink()
    (other / "new file").write_text("")
    (other / "staged").write_text("")
    git(other, "add", "staged")
    (other / ".venv").mkdir()
    (other / ".venv" / "ignored").write_text("")
    files = [*BASE, "./kept", "./made", "./new file", "./staged"]
    assert shown(run(other, cwd=tmp_path)) == [*files, "as changed"]


@pytest.fixture
def few_programs(tmp_path: Path) -> str:
    """A PATH without git and all that is installed for the tests."""
    few = tmp_path / "few"
    few.mkdir()
    for name in ("bash", "cat", "dirname", "find", "grep", "mkdir", "mktemp", "rm", "sed", "sh",
                 "sort", "tar"):  # fmt: skip
        (few / name).symlink_to(str(shutil.which(name)))
    return str(few)


def test_a_checkout_without_git_is_tested_as_it_lies(
    checkout: Path, run: Run, few_programs: str
) -> None:
    found = shown(run(checkout, path=few_programs))
    assert found == [*BASE, "./gone", "./kept", "./made", "as committed"]


def test_what_the_machine_lacks_is_installed_before_the_tests(
    checkout: Path, run: Run, tmp_path: Path, few_programs: str
) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "bin" / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> "{asked}"\n')
    run(checkout)
    assert not asked.exists() or shutil.which("git") is None
    (tmp_path / "bin" / "ps").unlink()
    readme = checkout / "README.md"
    readme.write_text(readme.read_text().replace("cat made", f'cat "{asked}" && cat made', 1))
    done = run(checkout, path=few_programs)
    assert done.returncode == 0, done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in words[:4]] == ["update", "install"] * 2
    assert words[1][-1] == "git" and words[3][-3:] == ["chromium", "prometheus", "procps"]


def test_without_what_the_machine_lacks_nothing_is_tested(
    checkout: Path, run: Run, tmp_path: Path, few_programs: str
) -> None:
    (tmp_path / "bin" / "apt-get").write_text('#!/bin/sh\ncase "$*" in *chromium*) exit 9; esac\n')
    (tmp_path / "bin" / "chromium").unlink()
    done = run(checkout, path=few_programs)
    assert done.returncode == 9
    assert "1 passed" not in done.stdout


def test_a_failure_of_the_tests_is_that_of_the_script(checkout: Path, run: Run) -> None:
    (checkout / "README.md").write_text(COMMANDS.replace('echo "1 passed', 'exit 3; echo "1'))
    done = run(checkout)
    assert done.returncode == 3
    assert "a third one" not in done.stdout


def test_what_python_compiles_is_kept(checkout: Path, run: Run) -> None:
    """Else each process that imports vLLM compiles it: half of the tests' CPU time."""
    (checkout / "README.md").write_text(
        COMMANDS.replace('echo "1 passed', 'echo "$PIP_COMPILE${PYTHONDONTWRITEBYTECODE-kept}')
    )
    done = run(checkout, PYTHONDONTWRITEBYTECODE="1")
    assert done.stdout.splitlines()[-1] == "0kept"


def test_what_a_shell_has_left_set_reaches_no_test() -> None:
    left = {
        "NFP_PROBE_CONFIG": "{}", "NFP_INJECT_FAULT": "attach", "VLLM_PLUGINS": "other",
        "VLLM_API_KEY": "x", "VLLM_CPU_KVCACHE_SPACE": "400",
        "VLLM_LOGGING_LEVEL": "ERROR", "FORCE_COLOR": "1", "COLUMNS": "40",
    }  # fmt: skip
    program = (
        "import conftest, os, sys, urllib.request; from vllm_nfp import faults; "
        "print([n for n in sys.argv[1:] if n in os.environ], "
        "os.environ['VLLM_CPU_KVCACHE_SPACE'], faults._armed, "
        "urllib.request.proxy_bypass('127.0.0.1'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *left], cwd=Path(__file__).parents[1],
        env={**os.environ, **left, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    kept = "['VLLM_CPU_KVCACHE_SPACE'] 1"
    assert done.stdout.strip() in (f"{kept} False True", f"{kept} False 1")
