"""Fixtures: small models made on the spot, and the skip of GPU tests where there is none."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from vllm_nfp import faults
from vllm_nfp.config import ENV_VAR

if TYPE_CHECKING:
    from vllm_nfp.results.profile import Profile

ROOT = Path(__file__).resolve().parents[1]
GPU_RESULTS = ROOT / "benchmarks" / "results" / "2026-11-24-h100"

# A busy machine is no fault of an example. The same examples each time, so that a change is judged
# by what it does; NFP_THOROUGH=1 looks for new ones.
settings.register_profile(
    "unhurried", deadline=None, derandomize=not os.environ.get("NFP_THOROUGH")
)
settings.load_profile("unhurried")

# What a shell may have left set switches the probe on, keeps it out, or breaks it, in this process
# and in all that tests start; and a proxy for HTTP does not know the servers on this machine.
LEFT_SET = (
    ENV_VAR, faults.ENV_VAR, "VLLM_PLUGINS", "VLLM_API_KEY", "VLLM_PORT", "VLLM_CONFIGURE_LOGGING",
    "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_PREFIX", "VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_COLOR",
    "PROMETHEUS_MULTIPROC_DIR", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE",
)  # fmt: skip
for name in LEFT_SET:
    os.environ.pop(name, None)
faults.arm()
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = "127.0.0.1,localhost"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; several engines run at a time
# Small matrices need no second thread. Where engines share the cores, the threads of each step wait
# for each other, and spin: generating took four times as long, and CPU time with it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

# A shell has its background jobs ignore SIGINT, nohup SIGHUP, and children inherit that.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def fresh_environment_of_vllm() -> None:
    """An engine in this process makes vLLM remember the environment as it was then."""
    forget = getattr(sys.modules.get("vllm.envs"), "disable_envs_cache", None)
    if forget is not None:
        forget()


def files_at_the_top() -> set[str]:
    """Names in the checkout's top folder, without what git ignores."""
    return {name for name in os.listdir(ROOT) if not name.startswith((".", "__pycache__"))}


@pytest.fixture(autouse=True)
def checkout_stays_clean() -> Iterator[None]:
    """A command without ``-o`` writes into the current folder, which is the checkout."""
    before = files_at_the_top()
    yield
    left = files_at_the_top() - before
    assert not left, f"written into the checkout while this test ran: {', '.join(sorted(left))}"


def replaced() -> set[str]:
    """Names of vLLM's attributes that are replaced in this process, objects' own left out."""
    if "vllm" not in sys.modules:
        return set()
    from vllm_nfp.adapter.patch import MARK
    from vllm_nfp.adapter.targets import TARGETS

    return {
        target.name
        for target in TARGETS
        if target.is_imported and not target.on_object
        and hasattr(getattr(target.owner(), target.attribute, None), MARK)
    }  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_stays_replaced(request: pytest.FixtureRequest) -> Iterator[None]:
    """A hook that a unit test leaves on vLLM fails this test, not a later one by chance."""
    before = replaced()
    yield
    if request.path.parent.name == "unit":
        assert replaced() <= before, "the test left hooks on vLLM"


@pytest.fixture(autouse=True)
def sessions_end() -> Iterator[None]:
    """Threads of sessions that a unit test makes end with it."""
    yield
    sessions = sys.modules.get("sessions")
    if sessions is not None:
        sessions.end_all()


@pytest.fixture
def inject_fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a stage of the probe fail in this process until the test ends."""

    def inject(stage: str) -> None:
        monkeypatch.setenv(faults.ENV_VAR, stage)
        monkeypatch.setattr(faults, "_armed", True)

    return inject


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        config.option.loadscopereorder = False  # it would begin with the files of most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _longest_files_first(items)
    _skip_thorough(items)
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


def _longest_files_first(items: list[pytest.Item]) -> None:
    """Processes take a file at a time: one that began last would leave the others without work."""
    engines = ROOT / "tests" / "engine"

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        if item.path.is_relative_to(engines):
            return LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)
        return len(LONG_FILES) + 1

    items.sort(key=place)


def _skip_thorough(items: list[pytest.Item]) -> None:
    """Leave what starts servers for cases that other tests nearly cover to releases."""
    if os.environ.get("NFP_THOROUGH"):
        return
    skip = pytest.mark.skip(reason="for releases: set NFP_THOROUGH=1")
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker(skip)


LONG_FILES = (
    "test_server", "test_identity", "test_draft_control_engine", "test_waves", "test_session",
    "test_calibrate", "test_measure_engine", "test_faults_serving", "test_ranks",
    "test_draft_curves_engine", "test_state_kinds", "test_talk", "test_states",
)  # fmt: skip
"""In tests/engine; the other files there follow, and all others after them."""

DENSE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
}

MOE = {
    **DENSE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


SLIDING = {
    **DENSE,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 6,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "query_pre_attn_scalar": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}

LATENT = {
    **MOE,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "head_dim": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "norm_topk_prob": False,
}
"""One latent vector for the keys and values of all heads, of the size that vLLM's kernels know."""


def write_model(folder: Path, config: dict[str, object]) -> Path:
    """A model with random weights, large enough that greedy decoding does not repeat itself."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.15)
    model.to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("dense"), DENSE)


@pytest.fixture(scope="session")
def moe_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("moe"), MOE)


@pytest.fixture(scope="session")
def sliding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sliding"), SLIDING)


@pytest.fixture(scope="session")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("latent"), LATENT)


def profile_of_results(name: str) -> Profile:
    """The profile of a run on an H100, from its raw pairs."""
    # The scripts are no part of the installed package.
    sys.path.insert(0, str(ROOT))
    from benchmarks.prediction import to_profile

    return to_profile.build(GPU_RESULTS, name)


@pytest.fixture(scope="session")
def dense_profile() -> Profile:
    return profile_of_results("dense")


@pytest.fixture(scope="session")
def moe_profile() -> Profile:
    return profile_of_results("moe")
