"""What our modules load, each in a Python of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import click
import pytest

from vllm_nfp.cli import SUMMARIES, main

HEAVY = (
    "torch", "vllm", "transformers", "prometheus_client", "numpy", "scipy", "pandas", "matplotlib",
    "jinja2", "rich", "click", "yaml",
)  # fmt: skip
SHOW = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"


def loaded(code: str, env: dict[str, str] | None = None) -> list[str]:
    """Modules that a fresh interpreter has loaded after the code."""
    # -S: what an editable installation puts into site hooks is not ours; the paths are handed on.
    path = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", path + code + SHOW],
        capture_output=True, text=True, timeout=120, check=True, env=env,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def heavy(modules: Sequence[str]) -> set[str]:
    return {name.split(".")[0] for name in modules} & set(HEAVY)


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import vllm_nfp", set()),
        ("import vllm_nfp.results.profile", set()),
        ("from vllm_nfp import load_profile", set()),
        ("from vllm_nfp import recommend", set()),
        ("from vllm_nfp import predict", {"numpy"}),
        ("import vllm_nfp.results.snapshot", set()),
        ("import vllm_nfp.metrics", set()),
        ("import vllm_nfp.results.scrape", set()),
        ("import vllm_nfp.draft.recommend", set()),
        ("import vllm_nfp.results.compare", set()),
        ("import vllm_nfp.report", set()),
        ("import vllm_nfp.config", set()),
        ("import vllm_nfp.measure", set()),
        ("import vllm_nfp.probe.graph_cache", set()),
        ("import vllm_nfp.probe.limits", {"numpy"}),
        ("from vllm_nfp.metrics.collector import NfpCollector", {"prometheus_client"}),
    ],
)
def test_an_import_loads_what_it_needs(code: str, needed: set[str]) -> None:
    assert heavy(loaded(code)) == needed


def run(*args: str) -> str:
    """Code that runs the command without ending the interpreter."""
    return (
        "import contextlib, io\n"
        "from vllm_nfp.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    main({list(args)!r}, standalone_mode=False)"
    )


def test_help_and_version_load_click_alone() -> None:
    assert heavy(loaded(run("--help"))) == {"click"}
    assert heavy(loaded(run("--version"))) == {"click"}


def test_a_command_loads_no_library_of_another() -> None:
    assert heavy(loaded(run("table", "--help"))) == {"click", "rich"}
    assert heavy(loaded(run("report", "--help"))) <= {"click", "rich"}
    assert heavy(loaded(run("compare", "--help"))) == {"click", "rich"}


def test_commands_load_nothing_that_touches_vllm_before_they_run() -> None:
    names = [name.replace("-", "_") for name in SUMMARIES]
    modules = loaded("\n".join(f"import vllm_nfp.cli.{name}" for name in names))
    assert not [name for name in modules if name.startswith(("vllm_nfp.engine", "vllm.", "torch"))]


def test_help_says_of_each_command_what_its_own_help_says() -> None:
    context = click.Context(main)
    assert isinstance(main, click.Group)
    assert main.list_commands(context) == sorted(SUMMARIES)
    for name, summary in SUMMARIES.items():
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert " ".join((command.help or "").split("\n\n")[0].split()) == summary
    for width in (60, 80, 120):
        settings = {**main.context_settings, "terminal_width": width, "info_name": "vllm-nfp"}
        shown = main.get_help(click.Context(main, **settings))  # type: ignore[arg-type]
        listed = " ".join(shown.split("Commands:", 1)[1].split())
        assert listed == " ".join(f"{name} {SUMMARIES[name]}" for name in sorted(SUMMARIES))
        assert max(map(len, shown.splitlines())) <= width
    assert main.get_command(context, "no-such") is None


def test_the_plugin_without_the_probe_imports_nothing() -> None:
    begin = loaded("import os, collections.abc")
    code = (
        "import os, sys, collections.abc\n"
        "os.environ.pop('NFP_PROBE_CONFIG', None)\n"
        "sys.argv = ['vllm', 'serve', 'model']\n"
        "from vllm_nfp.plugin import register\n"
        "register()"
    )
    added = {name for name in loaded(code) if name not in begin}
    ours = {"vllm_nfp", "vllm_nfp.plugin", "vllm_nfp.env_var"}
    assert {name for name in added if name.startswith("vllm_nfp")} == ours
    standard = {name for name in added - ours if name.split(".")[0] in sys.stdlib_module_names}
    assert added == ours | standard
    assert not standard & {"json", "inspect", "dataclasses", "tempfile", "subprocess"}
