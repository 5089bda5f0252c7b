"""The parts that every run of a shape needs."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_nfp.adapter.connectors import transfers_blocks
from vllm_nfp.adapter.layers import find_decoder_layers, sample_layers
from vllm_nfp.adapter.ranks import Ranks
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe.batch import BatchBuilder, most_sequences
from vllm_nfp.probe.forward import Forward
from vllm_nfp.probe.kv_blocks import block_readers
from vllm_nfp.probe.kv_proof import Prover
from vllm_nfp.probe.limits import ShapeLimits
from vllm_nfp.probe.states import ProbeStates
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.probe.written_blocks import WrittenBlocks
from vllm_nfp.timing import Clock


@dataclass(frozen=True, slots=True)
class Runtime:
    """What builds, runs, proves and times batches."""

    batches: BatchBuilder
    forward: Forward
    prover: Prover
    clock: Clock
    ranks: Ranks
    """Those that run each shape with this one."""


def runtime_of(
    view: RunnerView,
    clock: Clock,
    config: ProbeConfig,
    limits: ShapeLimits,
    tokens: TokenPool,
    ranks: Ranks,
    states: ProbeStates | None = None,
    written: WrittenBlocks | None = None,
) -> Runtime:
    """The parts for a runner's model and KV cache.

    Args:
        states: what layers with a recurrent state work on; None: the model has none.
        written: contexts of real sequences; None: what KV blocks hold does not matter.

    Raises:
        UnknownVllmError: if the runner keeps its buffers elsewhere.
        UnsupportedModelError: if the model's layers cannot be told apart.
    """
    server, rules, groups, device = limits.server, limits.rules, limits.groups, view.device
    batch_sizes = [
        b for b in config.batch_sizes if b <= server.max_batch_size and limits.holds_tables(b)
    ]
    batches = BatchBuilder(
        rules,
        block_readers(groups, device, config.seed, written),
        limits.table_widths,
        tokens,
        device,
        server.causal and not config.bidirectional,
        most_sequences(rules, batch_sizes, config.grid),
    )
    compilation = view.vllm_config.compilation_config
    contexts = compilation.static_forward_context
    layers = find_decoder_layers(view.model, contexts, compilation.static_all_moe_layers)
    timed = sample_layers(layers, config.sampled_layers)
    forward = Forward(view, clock, groups, layers, timed, states)
    transfers = transfers_blocks(view.vllm_config)
    prover = Prover(contexts, groups, clock, device, transfers, states)
    return Runtime(batches, forward, prover, clock, ranks)
