from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vllm_nfp.plugin_list import excluded, with_plugin
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.process import ProcessError
from vllm_nfp.start.server import running_server


@pytest.mark.parametrize(
    ("allowed", "added"),
    [
        (None, {}),
        ("nfp", {}),
        ("other,nfp", {}),
        ("other", {"VLLM_PLUGINS": "other,nfp"}),
        ("", {"VLLM_PLUGINS": "nfp"}),
        ("other, nfp", {"VLLM_PLUGINS": "other, nfp,nfp"}),
    ],
)
def test_the_plugin_is_added_where_the_list_leaves_it_out(
    allowed: str | None, added: dict[str, str]
) -> None:
    environ = {} if allowed is None else {"VLLM_PLUGINS": allowed}
    assert with_plugin(environ) == added
    assert not excluded({**environ, **added})


def test_our_list_is_read_as_vllm_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = pytest.importorskip("vllm.envs")
    for allowed in ("nfp", "other, nfp", "other,nfp", ""):
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
        names = envs.environment_variables["VLLM_PLUGINS"]()
        assert ("nfp" not in names) is excluded({"VLLM_PLUGINS": allowed})


def test_the_demonstrations_server_loads_the_probe_whatever_plugins_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    told = [sys.executable, "-c", "import os; print(os.environ['VLLM_PLUGINS'])"]
    with (
        pytest.raises(ProcessError, match="ended with code 0"),
        running_server(told, tmp_path / "log", free_port()),
    ):
        pass
    assert (tmp_path / "log").read_text().strip() == "other,nfp"
