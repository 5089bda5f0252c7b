"""benchmarks/data_parallel.py: what its servers are started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.data_parallel import plans
from benchmarks.table_servers import Session
from benchmarks.tensor_parallel import TABLE


def test_engines_share_the_experts_and_only_one_server_has_the_probe() -> None:
    probed, plain = plans(4)
    assert probed.flags[-2:] == plain.flags[-2:] == ("--data-parallel-size", "4")
    assert probed.expert_parallel and plain.expert_parallel
    assert (probed.probe, plain.probe) == (TABLE, None)


@pytest.mark.parametrize("trial", [False, True])
def test_at_the_defaults_the_probe_has_no_setting_and_keeps_its_samples(
    trial: bool, tmp_path: Path
) -> None:
    probed, plain = plans(2, trial, at_defaults=True)
    assert probed.probe == {}
    session = Session(tmp_path, tmp_path, 1.0)
    specs = [session._spec(plan, 8000) for plan in (probed, plain)]
    assert [spec.probe for spec in specs] == [{}, None]
    assert [spec.output_dir for spec in specs] == [tmp_path / "probe-dp-ep", None]
