"""Looks up in a vLLM source tree every name of vLLM's that this project imports or hooks.

    python tests/matrix/names.py FOLDER_WITH_vllm

Reads files and imports nothing, so it works for releases that cannot run here. It tells renamed or
moved names, not changed behaviour. The exit status is 1 if a name is missing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
V1, V2 = "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"
HOOKED = (
    ("vllm.engine.arg_utils", ("def add_cli_args", "def from_cli_args")),
    ("vllm.v1.metrics.prometheus", ("def get_prometheus_registry",)),
    ("vllm.v1.worker.worker_base", ("class WorkerWrapperBase", "def init_device")),
    ("vllm.v1.worker.gpu_worker", ("def compile_or_warm_up_model", "self.model_runner")),
    ("vllm.v1.worker.cpu_worker", ("def compile_or_warm_up_model", "self.model_runner")),
    (
        V1,
        ("def execute_model", "def sample_tokens", "def get_model", "self.attn_groups",
         "self.kv_cache_config", "self.uniform_decode_query_len", "self.input_ids",
         "self.positions"),
    ),
    (
        V2,
        ("def execute_model", "def sample_tokens", "def get_model", "self.attn_groups",
         "self.kv_cache_config", "self.decode_query_len", "self.input_buffers", "dummy_run"),
    ),
    ("vllm.v1.core.sched.output",
     ("num_scheduled_tokens", "scheduled_new_reqs", "scheduled_cached_reqs",
      "num_computed_tokens", "scheduled_encoder_inputs")),
)  # fmt: skip
"""Module -> texts that it must hold."""
OPTIONAL = {
    ("vllm.v1.worker.step_observer", "*"),  # the extension point of patches/
    ("vllm.v1.metrics.worker_metrics", "*"),
}


def imported() -> Iterator[tuple[str, str]]:
    """(module, name) of every import from vLLM in this project's package."""
    for path in sorted((ROOT / "vllm_nfp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                for alias in node.names:
                    yield str(node.module), alias.name


def file_of(tree: Path, module: str) -> Path | None:
    base = tree.joinpath(*module.split("."))
    places = (base.with_suffix(".py"), base / "__init__.py")
    return next((place for place in places if place.is_file()), None)


def missing(tree: Path) -> list[str]:
    """The names that the tree lacks, one line each."""
    found = []
    for module, name in sorted(set(imported())):
        if (module, "*") in OPTIONAL:
            continue
        path = file_of(tree, module)
        if path is None:
            found.append(f"{module}: no such module (for {name})")
        elif name not in path.read_text(encoding="utf-8") and not file_of(tree, f"{module}.{name}"):
            found.append(f"{module}: no {name}")
    for module, texts in HOOKED:
        path = file_of(tree, module)
        text = "" if path is None else path.read_text(encoding="utf-8")
        found += [f"{module}: no {wanted!r}" for wanted in texts if wanted not in text]
    return found


if __name__ == "__main__":
    lines = missing(Path(sys.argv[1]))
    print("\n".join(lines) or "every name is there")
    sys.exit(bool(lines))
