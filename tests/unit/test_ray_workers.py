"""What vLLM copies to Ray's workers, by vLLM's own functions; no Ray is started."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.ray_workers import carry_settings
from vllm_nfp.config import ENV_VAR, ProbeConfig

pytest.importorskip("vllm")

USERS = "MY_VARIABLE"


@pytest.fixture
def patches(monkeypatch: pytest.MonkeyPatch) -> Iterator[PatchSet]:
    monkeypatch.setenv("VLLM_RAY_EXTRA_ENV_VARS_TO_COPY", USERS)
    made = PatchSet()
    yield made
    made.restore()


def test_the_settings_are_among_what_vllm_copies(patches: PatchSet) -> None:
    from vllm.ray.ray_env import get_env_vars_to_copy

    before = get_env_vars_to_copy()
    assert USERS in before
    assert ENV_VAR not in before, "vLLM copies it by itself"
    carry_settings(patches)
    assert get_env_vars_to_copy() == before | {ENV_VAR}
    patches.restore()
    assert get_env_vars_to_copy() == before


def test_the_executor_that_copies_everything_copies_the_settings_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.executor.ray_env_utils import get_driver_env_vars
    from vllm.v1.executor.ray_utils import WORKER_SPECIFIC_ENV_VARS

    settings = ProbeConfig(run_dir="/tmp/vllm-nfp-x").to_json()
    monkeypatch.setenv(ENV_VAR, settings)
    assert get_driver_env_vars(WORKER_SPECIFIC_ENV_VARS)[ENV_VAR] == settings


def test_the_models_compile_cache_has_the_same_key(patches: PatchSet) -> None:
    from vllm import envs

    before = envs.compile_factors()
    carry_settings(patches)
    assert envs.compile_factors() == before
