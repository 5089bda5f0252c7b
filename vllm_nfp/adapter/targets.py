"""Every attribute of vLLM, and of the libraries beside it, that the probe replaces: one list.

Hooks are put in place and undone by it (:mod:`vllm_nfp.adapter.patch`), ``vllm-nfp doctor`` looks
for it in the installed vLLM, and ``tests/matrix/names.py`` in the sources of a release.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Feature(StrEnum):
    """What a replaced attribute is needed for."""

    FLAGS = "flags of vllm serve"
    WORKER = "start of the probe in a worker"
    STEPS = "observation of steps"
    IDLE = "probes while no request is there"
    METRICS = "results on /metrics"
    DRAFT_CONTROL = "draft control"
    VERIFICATION = "adaptive verification"
    DRAFT_GRAPHS = "CUDA graphs for all draft lengths"
    LENGTH_GRAPHS = "choice of CUDA graphs by draft length"
    CAPTURE = "memory pool shared with vLLM's CUDA graphs"
    MODULES = "timing of modules with light kernels"
    COLLECTIVES = "timing of collectives"
    CONNECTORS = "probing beside a KV connector"
    LORA = "probing beside LoRA adapters"
    ENGINES = "probing of engines that take their steps together"
    RAY = "settings in Ray's workers"


PROBE = frozenset({Feature.FLAGS, Feature.WORKER, Feature.STEPS})
"""Features without which there is no probe."""
_REQUIRED = PROBE | {Feature.DRAFT_CONTROL, Feature.CONNECTORS, Feature.LORA, Feature.ENGINES}


@dataclass(frozen=True, slots=True)
class Target:
    """An attribute that is replaced."""

    name: str
    """``module:attribute`` or ``module:Class.attribute``."""
    feature: Feature
    purpose: str
    """What the replacement does."""
    since: tuple[int, int] | None = None
    """First release of vLLM in which it is replaced; None: all. Every release in
    :data:`vllm_nfp.releases.RELEASES` from it on has it (sources of 0.29.0 to 0.33.0)."""
    on_object: bool = False
    """It is replaced on single objects; the name has their class."""

    @property
    def required(self) -> bool:
        """Whether the probe, or the draft control, gives up where vLLM lacks it.

        Others are left out with a warning: the probe goes on without their feature.
        """
        return self.feature in _REQUIRED

    @property
    def module(self) -> str:
        """The module that it is found in."""
        return self.name.partition(":")[0]

    @property
    def path(self) -> tuple[str, ...]:
        """What leads from the module to it: a class, if there is one, and the attribute."""
        return tuple(self.name.partition(":")[2].split("."))

    @property
    def attribute(self) -> str:
        """Its own name."""
        return self.path[-1]

    @property
    def is_imported(self) -> bool:
        """Whether this process has imported the module."""
        return self.module in sys.modules

    def owner(self) -> Any:
        """The module or class that has it.

        Raises:
            ImportError: if there is no such module.
            AttributeError: if the module has no such class.
        """
        owner: Any = importlib.import_module(self.module)
        for name in self.path[:-1]:
            owner = getattr(owner, name)
        return owner

    def is_in(self, release: tuple[int, int] | None) -> bool:
        """Whether it is replaced in this release; a build without a number counts as the newest."""
        return self.since is None or release is None or self.since <= release


ADD_CLI_ARGS = Target(
    "vllm.engine.arg_utils:EngineArgs.add_cli_args", Feature.FLAGS, "adds the --nfp-* flags"
)
FROM_CLI_ARGS = Target(
    "vllm.engine.arg_utils:EngineArgs.from_cli_args", Feature.FLAGS, "reads the --nfp-* flags"
)
PARSE_KNOWN_ARGS = Target(
    "argparse:ArgumentParser.parse_known_args",
    Feature.FLAGS,
    "refuses flags that do not fit together before anything is started",
    on_object=True,
)

INIT_DEVICE = Target(
    "vllm.v1.worker.worker_base:WorkerWrapperBase.init_device",
    Feature.WORKER,
    "finds the worker, whose class may be any platform's",
)
WARM_UP = Target(
    "vllm.v1.worker.worker_base:WorkerBase.compile_or_warm_up_model",
    Feature.WORKER,
    "starts the observer once the worker has captured its CUDA graphs",
    on_object=True,
)
V1_EXECUTE_MODEL = Target(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.execute_model",
    Feature.STEPS,
    "calls the observer before a step",
    on_object=True,
)
V1_SAMPLE_TOKENS = Target(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens",
    Feature.STEPS,
    "calls the observer after a step was launched",
    on_object=True,
)
V2_EXECUTE_MODEL = Target(
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.execute_model",
    Feature.STEPS,
    "calls the observer before a step",
    on_object=True,
)
V2_SAMPLE_TOKENS = Target(
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.sample_tokens",
    Feature.STEPS,
    "calls the observer after a step was launched",
    on_object=True,
)

EXECUTE_DUMMY_BATCH = Target(
    "vllm.v1.worker.gpu_worker:Worker.execute_dummy_batch",
    Feature.ENGINES,
    "counts the dummy batches of an engine without work",
    on_object=True,
)
RAY_VARIABLES = Target(
    "vllm.ray.ray_env:DEFAULT_EXTRA_ENV_VARS",
    Feature.RAY,
    "adds the probe's settings to the variables that vLLM copies to Ray's workers",
)

RUN_BUSY_LOOP = Target(
    "vllm.v1.engine.core:EngineCoreProc.run_busy_loop",
    Feature.IDLE,
    "finds the engine's input queue when its loop starts",
)
QUEUE_GET = Target(
    "queue:Queue.get", Feature.IDLE, "lets the observer work while the queue is empty",
    on_object=True,
)  # fmt: skip

GET_REGISTRY = Target(
    "vllm.v1.metrics.prometheus:get_prometheus_registry",
    Feature.METRICS,
    "adds the probe's collector",
)
GET_REGISTRY_BY_NAME = Target(
    "vllm.entrypoints.serve.instrumentator.metrics:get_prometheus_registry",
    Feature.METRICS,
    "the same where the function was imported by name",
)
COLLECT = Target(
    "prometheus_client.multiprocess:MultiProcessCollector.collect",
    Feature.METRICS,
    "adds the probe's results to a scrape of several API servers",
)

SCHEDULER_INIT = Target(
    "vllm.v1.core.sched.scheduler:Scheduler.__init__",
    Feature.DRAFT_CONTROL,
    "gives each scheduler a controller",
)
SCHEDULE = Target(
    "vllm.v1.core.sched.scheduler:Scheduler.schedule",
    Feature.DRAFT_CONTROL,
    "shows the controller each step that is planned",
    on_object=True,
)
UPDATE_FROM_OUTPUT = Target(
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
    Feature.DRAFT_CONTROL,
    "shows the controller which drafts of a step were accepted",
    on_object=True,
)
GET_NUM_TOKENS = Target(
    "vllm.v1.worker.gpu.spec_decode.adaptive_verification:"
    "AdaptiveVerificationManager.get_num_tokens",
    Feature.VERIFICATION,
    "gives adaptive verification its costs, and shows the tokens that a step really runs",
    since=(0, 32),
    on_object=True,
)
REALLOCATE_DRAFTS = Target(
    "vllm.v1.worker.gpu.spec_decode.adaptive_verification:"
    "AdaptiveVerificationManager.reallocate_drafts",
    Feature.VERIFICATION,
    "spares the host most of what giving the admitted drafts to requests takes",
    since=(0, 32),
    on_object=True,
)
SET_CUDAGRAPH_SIZES = Target(
    "vllm.config.vllm:VllmConfig._set_cudagraph_sizes",
    Feature.DRAFT_GRAPHS,
    "lists the widths of steps with every draft length for capture",
)
INIT_CANDIDATES = Target(
    "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager._init_candidates",
    Feature.DRAFT_GRAPHS,
    "lets the V2 runner capture graphs for every draft length",
    since=(0, 32),
)
SPECULATOR_CAPTURE = Target(
    "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils:"
    "SpeculatorCudaGraphManager.capture",
    Feature.DRAFT_GRAPHS,
    "lets the V2 drafter capture graphs for every draft length",
    since=(0, 32),
)

GRAPH_MANAGER = Target(
    "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager.__init__",
    Feature.LENGTH_GRAPHS,
    "lets the V2 runner choose among the CUDA graphs of each draft length",
    since=(0, 32),
)
DRAFTER_GRAPHS = Target(
    "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator:"
    "TargetDependentARSpeculator.init_cudagraph_manager",
    Feature.LENGTH_GRAPHS,
    "captures the drafter's CUDA graphs like the model's under adaptive verification",
    since=(0, 32),
)
DRAFTER_PROPOSE = Target(
    "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator:"
    "TargetDependentARSpeculator.propose",
    Feature.LENGTH_GRAPHS,
    "notes how many requests the attention metadata are of that a drafter takes over",
    since=(0, 32),
)
DRAFTER_DISPATCH = Target(
    "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager.dispatch",
    Feature.LENGTH_GRAPHS,
    "lets the drafter replay FULL CUDA graphs of as many requests only",
    since=(0, 32),
)

CAPTURE_BEGIN = Target(
    "torch.cuda:CUDAGraph.capture_begin",
    Feature.CAPTURE,
    "notes the memory pool and the stream of vLLM's CUDA graphs",
)
EMBEDDING = Target(
    "vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod.embedding",
    Feature.MODULES,
    "looks embeddings up by indexing",
)
CUSTOM_OP = Target(
    "vllm.model_executor.custom_op:CustomOp.forward",
    Feature.MODULES,
    "quantizes activations by vLLM's kernel",
)
HAS_KV_CONNECTOR = Target(
    "vllm.model_executor.layers.attention.kv_transfer_utils:has_kv_transfer_group",
    Feature.CONNECTORS,
    "keeps a probe's attention layers from waiting for loads and saving their keys and values",
)


LORA_EMBEDDING = Target(
    "vllm.lora.layers.vocab_parallel_embedding:VocabParallelEmbeddingWithLoRA.forward",
    Feature.LORA,
    "looks up a probe's embeddings without an adapter",
)
ADD_LORA = tuple(
    Target(
        f"vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase.{name}",
        Feature.LORA,
        "leaves a probe's outputs without an adapter's part",
        on_object=True,
    )
    for name in (
        "add_shrink", "add_expand", "add_lora_embedding", "add_lora_linear", "add_lora_logits",
    )
)  # fmt: skip


def _collective(name: str, since: tuple[int, int] | None = None) -> Target:
    return Target(
        f"vllm.distributed.parallel_state:GroupCoordinator.{name}",
        Feature.COLLECTIVES,
        "notes when a collective begins and ends",
        since=since,
        on_object=True,
    )


COLLECTIVES = (
    *map(
        _collective,
        (
            "all_reduce",
            "all_gather",
            "all_gatherv",
            "reduce_scatter",
            "reduce_scatterv",
            "gather",
            "dispatch",
            "combine",
        ),
    ),
    _collective("reduce_scatterv_into_output", since=(0, 32)),
)

TARGETS: tuple[Target, ...] = (
    ADD_CLI_ARGS,
    FROM_CLI_ARGS,
    PARSE_KNOWN_ARGS,
    INIT_DEVICE,
    WARM_UP,
    V1_EXECUTE_MODEL,
    V1_SAMPLE_TOKENS,
    V2_EXECUTE_MODEL,
    V2_SAMPLE_TOKENS,
    EXECUTE_DUMMY_BATCH,
    RAY_VARIABLES,
    RUN_BUSY_LOOP,
    QUEUE_GET,
    GET_REGISTRY,
    GET_REGISTRY_BY_NAME,
    COLLECT,
    SCHEDULER_INIT,
    SCHEDULE,
    UPDATE_FROM_OUTPUT,
    GET_NUM_TOKENS,
    REALLOCATE_DRAFTS,
    SET_CUDAGRAPH_SIZES,
    INIT_CANDIDATES,
    SPECULATOR_CAPTURE,
    GRAPH_MANAGER,
    DRAFTER_GRAPHS,
    DRAFTER_PROPOSE,
    DRAFTER_DISPATCH,
    CAPTURE_BEGIN,
    EMBEDDING,
    CUSTOM_OP,
    HAS_KV_CONNECTOR,
    LORA_EMBEDDING,
    *ADD_LORA,
    *COLLECTIVES,
)
"""All of them."""
