"""KV and encoder-cache connectors: which of them the probe runs beside, and how it keeps out.

vLLM gives a worker's KV connector its work with each step: it binds the step's metadata, starts
loads, and clears the metadata after the step (``v1/worker/kv_connector_model_runner_mixin.py``,
``v1/worker/gpu/kv_connector.py``). Inside a forward pass, each attention layer waits for its load
and saves its keys and values while metadata is bound
(``model_executor/layers/attention/kv_transfer_utils.py``). A probe runs between two steps, with no
metadata bound, and its attention layers see no connector at all. So it stores, sends and loads
nothing.

Blocks may be on their way in or out at any moment. A probe needs none of its own: it writes to no
block, and what it reads need not be whole, since its outputs go nowhere. Its proofs allow for
blocks that arrive meanwhile (:mod:`vllm_nfp.probe.kv_proof`).

Encoder-cache connectors work where images are encoded, which a probe never does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet

KV_CONNECTORS = frozenset(
    {
        "DecodeBenchConnector",
        "ExampleConnector",
        "FlexKVConnectorV1",
        "HF3FSKVConnector",
        "LMCacheConnectorV1",
        "LMCacheMPConnector",
        "MoRIIOConnector",
        "MooncakeConnector",
        "MooncakeStoreConnector",
        "NixlConnector",
        "NixlPullConnector",
        "NixlPushConnector",
        "OffloadingConnector",
        "SimpleCPUOffloadConnector",
    }
)
"""Those that move blocks of the usual KV cache and act on a step's metadata alone (sources of
0.29.0 to 0.32.0, ``distributed/kv_transfer/kv_connector/``). HiSparseConnector keeps most of the
cache on the host, and ExampleHiddenStatesConnector's cache holds no keys and values."""
SEVERAL = "MultiConnector"
"""Holds others."""
ENCODER_CONNECTORS = frozenset({"ECCPUConnector", "ECExampleConnector", "ECMooncakeConnector"})
"""The same sources, ``distributed/ec_transfer/ec_connector/``."""


def unknown_kv_connector(transfer: Any) -> str | None:
    """The first KV connector of a server that is not known to leave a probe alone.

    Args:
        transfer: vLLM's KVTransferConfig, or None.
    """
    if transfer is None:
        return None
    extra = transfer.kv_connector_extra_config
    name, module = transfer.kv_connector, transfer.kv_connector_module_path
    return _unknown(name, module, extra)


def _unknown(name: Any, module: Any, extra: Any) -> str | None:
    if module is not None:
        return f"{module}.{name}"
    if name != SEVERAL:
        return None if name in KV_CONNECTORS else str(name)
    for part in (extra or {}).get("connectors", ()):
        found = _unknown(
            part.get("kv_connector"),
            part.get("kv_connector_module_path"),
            part.get("kv_connector_extra_config"),
        )
        if found is not None:
            return found
    return None


def unknown_encoder_connector(transfer: Any) -> str | None:
    """The same for a server's encoder-cache connector.

    Args:
        transfer: vLLM's ECTransferConfig, or None.
    """
    if transfer is None:
        return None
    name, module = transfer.ec_connector, transfer.ec_connector_module_path
    if module is not None:
        return f"{module}.{name}"
    return None if name in ENCODER_CONNECTORS else str(name)


def transfers_blocks(vllm_config: Any) -> bool:
    """Whether somebody else than the model writes to the KV cache."""
    return vllm_config.kv_transfer_config is not None


@contextmanager
def without_connector(vllm_config: Any) -> Iterator[None]:
    """Have attention layers see no KV connector while the context lasts.

    For the thread that steps run on: no step begins meanwhile.

    Raises:
        MissingTargetError: if this vLLM looks for the connector elsewhere.
    """
    patches = PatchSet()
    try:
        if transfers_blocks(vllm_config):
            patches.wrap(targets.HAS_KV_CONNECTOR, lambda _: lambda: False)
        yield
    finally:
        patches.restore()
