"""Looks up in a vLLM source tree every name of vLLM's that this project imports, hooks or reads.

    python tests/matrix/names.py FOLDER_WITH_vllm

Reads files and imports nothing of vLLM's, so it works for releases that cannot run here. It finds
renamed or moved names and what differs from the tables of vllm_nfp/adapter (what is hooked:
targets.py), not changed behaviour. The exit status is 1 if a name is missing.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from vllm_nfp.adapter import sources, versions
from vllm_nfp.adapter.bindings import CONFIG_ATTRIBUTES, FORWARD_CONTEXT_ARGUMENTS, SCHEDULER_FIELDS
from vllm_nfp.adapter.sources import file_of

ROOT = Path(__file__).resolve().parents[2]
V1, V2 = "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"
READ = (
    ("vllm.v1.worker.gpu_worker", ("self.model_runner",)),
    ("vllm.v1.worker.cpu_worker", ("self.model_runner",)),
    (
        V1,
        ("def get_model", "self.attn_groups", "self.kv_cache_config",
         "self.uniform_decode_query_len", "self.input_ids", "self.positions", "self.input_batch",
         "self.inputs_embeds = ", "self.uses_mrope = ", "self.mrope_positions = "),
    ),
    (
        V2,
        ("def get_model", "self.attn_groups", "self.kv_cache_config", "self.decode_query_len",
         "self.input_buffers", "dummy_run", "self.block_tables", "self.cudagraph_manager",
         "self.kv_caches", "self.model_state"),
    ),
    ("vllm.v1.worker.gpu.model_states.default",
     ("class DefaultModelState", "def dummy_inputs_embeds", "self.rope_state = ")),
    ("vllm.v1.worker.gpu.mm.rope", ("self.positions = ",)),
    ("vllm.model_executor.models.interfaces",
     ("requires_raw_input_tokens", "def embed_input_ids", "multimodal_embeddings",
      "is_multimodal")),
    ("vllm.v1.worker.utils", ("    kv_cache_group_id: int",)),
    ("vllm.v1.worker.block_table", ("self.block_tables = ", "self.slot_mapping = ")),
    ("vllm.v1.worker.gpu.block_table", ("self.slot_mappings = ",)),
    ("vllm.v1.worker.gpu.input_batch", ("self.input_ids = ", "self.positions = ",
                                        "self.is_padding = ")),
    ("vllm.v1.worker.gpu.cudagraph_utils", ("def run_pw_graph",)),
    ("vllm.v1.engine.core", ("self.input_queue = ",)),
    ("vllm.v1.core.sched.scheduler",
     ("self.dynamic_sd_lookup", "self.num_spec_tokens", "self.running")),
    ("vllm.v1.core.sched.output",
     ("num_scheduled_tokens", "scheduled_new_reqs", "scheduled_cached_reqs",
      "prompt_token_ids", "prompt_is_token_ids", "mm_features", "num_computed_tokens",
      "    req_id: str", "    block_ids: tuple[list[int], ...]",
      "scheduled_spec_decode_tokens", "num_spec_tokens_to_schedule",
      *SCHEDULER_FIELDS)),
    ("vllm.v1.kv_cache_interface",
     ("kv_cache_groups: ", "kv_cache_spec: ", "num_blocks: ", "block_size: ")),
    ("vllm.v1.outputs", ("sampled_token_ids",)),
    ("vllm.entrypoints.llm", ("def enqueue", "def collective_rpc", "self.llm_engine = ")),
    ("vllm.v1.engine.llm_engine",
     ("self.vllm_config = ", "def step", "def has_unfinished_requests")),
    ("vllm.config.cache", ("enable_prefix_caching: bool", "num_gpu_blocks: ")),
    ("vllm.v1.core.block_pool", ("self.free_block_queue.prepend_n(blocks_to_evict_first)",
                                 "self.free_block_queue.append_n(blocks_to_evict_last)")),
)  # fmt: skip
"""Module -> texts that it must hold, since the probe reads these attributes."""
READ_SINCE_0_32 = (
    ("vllm.model_executor.layers.fused_moe.router.base_router",
     ("def set_capture_fn", "self.capture_fn(topk_ids)", "self.top_k = ")),
    ("vllm.model_executor.layers.fused_moe.runner.moe_runner",
     ("self.router = router", "self.moe_config = ", "def is_monolithic")),
    ("vllm.model_executor.layers.fused_moe.config", ("num_logical_experts: int",)),
    (V2, ("self.adaptive_verification",)),
    ("vllm.v1.worker.gpu.spec_decode.adaptive_verification",
     ("self.cost_tables", "self.num_bonus_tokens = ", "self.num_speculative_steps = ",
      "self._stale_confidences = ", "self._stale_idx = ", "self._batch_budget = ",
      "draft_cost_ms, verify_cost_ms = self.cost_tables")),
    ("vllm.config.speculative",
     ("enable_adaptive_verification: bool", "num_speculative_tokens: ", "method: ",
      "num_speculative_tokens_per_batch_size: ")),
)  # fmt: skip
"""The same of what vLLM has since 0.32."""
READ_BY_BENCHMARKS_SINCE_0_32 = (
    (V2,
     ("self.req_states", "self.speculator", "self.rejection_sampler",
      "input_batch: InputBatch,\n        grammar_output: GrammarOutput | None,\n    ) -> tuple["
      "SamplerOutput, torch.Tensor, torch.Tensor]:",
      "self.speculator.propose(\n                    input_batch,",
      "self.adaptive_verification.record_confidences(\n                    "
      "self.speculator.draft_token_confidence_probs, input_batch")),
    ("vllm.v1.worker.gpu.states",
     ("self.all_token_ids = ", "self.total_len = ", "self.prompt_len = ")),
    ("vllm.v1.worker.gpu.sample.output",
     ("sampled_token_ids: ", "num_sampled: ", "num_rejected: ")),
    ("vllm.v1.worker.gpu.input_batch",
     ("    idx_mapping: ", "    cu_num_logits: ", "    num_draft_tokens: int")),
    ("vllm.v1.worker.gpu.spec_decode.speculator",
     ("dummy_run: bool = False", "self.acceptance_estimator: ")),
    ("vllm.v1.worker.gpu.spec_decode.acceptance_estimator",
     ("self.slope = ", "self.intercepts = ", "self.features = ", "self.predictions = ")),
    ("vllm.v1.worker.gpu.spec_decode.rejection_sampler", ("self.synthetic_conditional_rates = ",)),
    ("vllm.model_executor.models.llama_eagle3", ("class Eagle3LlamaForCausalLM",)),
    ("vllm.v1.core.sched.scheduler", ("def has_requests", "def __init__")),
    ("vllm.v1.engine.core",
     ("self.scheduler.has_requests()", "get_scheduler_cls()", "vllm_config=vllm_config,")),
    ("vllm.config.scheduler", ("scheduler_cls: ", "def get_scheduler_cls")),
    ("vllm.entrypoints.serve.dev.rpc.api_router", ('"/collective_rpc"',)),
)  # fmt: skip
"""The same of what benchmarks replace or read on a GPU host, where no other test runs them: with
the arguments of the calls that they stand in."""
OPTIONAL = {
    ("vllm.v1.worker.step_observer", "*"),
    ("vllm.model_executor.layers.fused_moe.router.base_router", "*"),
    ("vllm.model_executor.layers.fused_moe.runner.moe_runner", "*"),
}
"""The extension point of patches/; and what is imported since 0.32 alone (READ_SINCE_0_32)."""


def imported() -> Iterator[tuple[str, str]]:
    """(module, name) of every import from vLLM in this project's package."""
    for path in sorted((ROOT / "vllm_nfp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                for alias in node.names:
                    yield str(node.module), alias.name


CONFIG_FILES = {
    "": "vllm.config.vllm",
    "parallel_config": "vllm.config.parallel",
    "model_config": "vllm.config.model",
    "cache_config": "vllm.config.cache",
    "scheduler_config": "vllm.config.scheduler",
    "compilation_config": "vllm.config.compilation",
    "offload_config": "vllm.config.offload",
    "device_config": "vllm.config.device",
}
"""Part of the configuration -> module that defines it."""


def release_of(tree: Path) -> str:
    """The tree's version."""
    text = (tree / "vllm" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__ = .*?'([^']+)'", text, re.MULTILINE)
    assert found is not None, "vllm/_version.py has no version"
    return found[1]


def definition(tree: Path, module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    path = file_of(tree, module)
    assert path is not None, f"{module}: no such module"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return node
    raise AssertionError(f"{module}: no {name}")


def unlike(tree: Path) -> Iterator[str]:
    """How the tree differs from what is known of its release (vllm_nfp/adapter/versions.py)."""
    with mock.patch.object(versions, "installed_version", lambda: release_of(tree)):
        given = set(versions.metadata_fields())
        multimodal = versions.is_since(versions.MULTIMODAL_PROPERTY)
        marks_padding = versions.is_since(versions.V1_PADDING_MASK)
        one_rotary = versions.is_since(versions.ONE_ROTARY_BUFFER)
    kind = definition(tree, "vllm.v1.attention.backend", "CommonAttentionMetadata")
    fields = {
        node.target.id: node.value is None
        for node in kind.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    yield from (f"CommonAttentionMetadata: no {name}" for name in sorted(given - set(fields)))
    required = {name for name, is_required in fields.items() if is_required}
    yield from (f"CommonAttentionMetadata: requires {n}" for n in sorted(required - given))
    has_lengths = "_seq_lens_cpu" in fields
    if has_lengths != ("_seq_lens_cpu" in given):
        yield f"HOST_LENGTHS is wrong: CommonAttentionMetadata has _seq_lens_cpu: {has_lengths}"
    enter = definition(tree, "vllm.forward_context", "set_forward_context")
    assert isinstance(enter, ast.FunctionDef)
    arguments = [argument.arg for argument in enter.args.args]
    without_default = arguments[: len(arguments) - len(enter.args.defaults)]
    for name in sorted(set(FORWARD_CONTEXT_ARGUMENTS) - set(arguments)):
        yield f"set_forward_context: no {name}"
    for name in sorted(set(without_default) - set(FORWARD_CONTEXT_ARGUMENTS)):
        yield f"set_forward_context: requires {name}"
    for part, names in CONFIG_ATTRIBUTES.items():
        text = text_of(tree, CONFIG_FILES[part])
        yield from (f"{CONFIG_FILES[part]}: no {n}" for n in names if not defines(text, n))
    if defines(text_of(tree, "vllm.config.model"), "supports_multimodal_inputs") != multimodal:
        yield "MULTIMODAL_PROPERTY is wrong"
    if ("self.is_padding = " in text_of(tree, V1)) != marks_padding:
        yield "V1_PADDING_MASK is wrong"
    if ("self.xdrope_positions = " in text_of(tree, V1)) == one_rotary:
        yield "ONE_ROTARY_BUFFER is wrong"


def text_of(tree: Path, module: str) -> str:
    path = file_of(tree, module)
    return "" if path is None else path.read_text(encoding="utf-8")


def defines(text: str, name: str) -> bool:
    return re.search(rf"^\s+(def {name}\b|{name}\s*[:=])", text, re.MULTILINE) is not None


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
    found += [
        f"{target.name}: missing, needed for {target.feature}"
        for target in sources.missing_targets(tree, versions.parse_release(release_of(tree)))
    ]
    release = versions.parse_release(release_of(tree))
    later = (*READ_SINCE_0_32, *READ_BY_BENCHMARKS_SINCE_0_32)
    newer = later if release is None or release >= (0, 32) else ()
    for module, texts in (*READ, *newer):
        path = file_of(tree, module)
        text = "" if path is None else path.read_text(encoding="utf-8")
        found += [f"{module}: no {wanted!r}" for wanted in texts if wanted not in text]
    return found


if __name__ == "__main__":
    lines = [*missing(Path(sys.argv[1])), *unlike(Path(sys.argv[1]))]
    print("\n".join(lines) or "every name is there")
    sys.exit(bool(lines))
