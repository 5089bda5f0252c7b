from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_engine import UNKNOWN_HYBRID
from test_engine import config as accepted

from vllm_nfp import cpu_setup, releases
from vllm_nfp.adapter import support, versions
from vllm_nfp.adapter.versions import Mode


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ("0.28.1", Mode.OFF),
        ("0.29.0", Mode.ACTIVE),
        ("0.29.0+cpu", Mode.ACTIVE),
        ("0.33.1.dev7+g123", Mode.ACTIVE),
        ("0.34.0", Mode.PASSIVE),
        ("0.99.0", Mode.PASSIVE),
        ("1.0.0", Mode.PASSIVE),
        ("0.1.dev9001+gabcdef", Mode.PASSIVE),
        ("dev", Mode.PASSIVE),
        (None, Mode.PASSIVE),
    ],
)
def test_the_version_decides_how_much_the_probe_does(version: str | None, mode: Mode) -> None:
    decision = versions.decide(version)
    assert decision.mode is mode
    assert bool(decision.reason) is (mode is not Mode.ACTIVE)


def test_the_table_has_every_release_once_and_in_order() -> None:
    numbers = [release.number for release in releases.RELEASES]
    assert numbers == [(0, minor) for minor in range(29, 34)]
    assert releases.known_release("0.32.0+cpu") is releases.RELEASES[-2]
    assert releases.known_release("0.34.0") is None
    assert releases.known_release(None) is None


def test_releases_that_ignore_draft_schedules_say_so_in_both_places() -> None:
    for release in releases.RELEASES:
        version = f"{release.number[0]}.{release.number[1]}.0"
        assert bool(release.limits) is (releases.draft_schedule_warning(version) is not None)


def test_no_configuration_stands_in_the_way_of_the_passive_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hybrid = accepted(**UNKNOWN_HYBRID)
    monkeypatch.setattr(versions, "installed_version", lambda: "0.32.0")
    assert support.decide(hybrid).mode is Mode.PASSIVE
    assert "recurrent" in support.decide(hybrid).reason
    assert support.decide(hybrid, passive=True).mode is Mode.PASSIVE
    monkeypatch.setattr(versions, "installed_version", lambda: "0.99.0")
    assert support.decide(hybrid).mode is Mode.PASSIVE


def installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str, **packages: tuple[str, str]
) -> None:
    """Fake the installation: name -> version and pinned torch."""

    def requires(name: str) -> list[str]:
        pin = packages[name][1]
        return ["numpy", f"torch=={pin}"] if pin else ["numpy"]

    def version(name: str) -> str:
        if name not in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return packages[name][0]

    (tmp_path / "version.py").write_text(f"debug = False\ncuda: Optional[str] = {cuda}\n")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", requires)


def test_a_cuda_build_beside_a_cpu_torch_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(
        monkeypatch, tmp_path, "None", torch=("2.13.0+cpu", ""),
        torchvision=("0.28.0", "2.13.0"), torchaudio=("2.13.0+cpu", "2.13.0"),
    )  # fmt: skip
    assert cpu_setup.broken_packages() == ("torchvision",)


def test_a_package_for_another_torch_is_broken_and_a_fitting_one_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(
        monkeypatch, tmp_path, "'13.0'", torch=("2.11.0+cu130", ""),
        torchvision=("0.28.0", "2.13.0"), torchaudio=("2.11.0", "2.11.0"), torchcodec=("0.17", ""),
    )  # fmt: skip
    assert cpu_setup.broken_packages() == ("torchvision",)
