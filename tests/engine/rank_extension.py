"""Added to vLLM's workers by test_ranks.py: attaches a probe session in each, over and over."""

from __future__ import annotations

import json
import os
from typing import Any

from vllm_nfp import faults
from vllm_nfp.config import config_from_mapping


class ProbeExtension:
    """Methods of a worker, called on all ranks at once."""

    nfp_session: Any = None
    nfp_unpatch: Any = staticmethod(lambda: None)

    def nfp_attach(self, settings: str, fault: str) -> bool:
        """Attach as the worker hook does; whether the rank takes part."""
        import torch
        from parts import attach

        from vllm_nfp.adapter import presence

        os.environ[faults.ENV_VAR] = fault
        faults.arm()
        worker: Any = self
        config = config_from_mapping(json.loads(settings))
        presence.announce(config)
        torch.distributed.barrier()  # the warm-up, in a server; here ranks attach again and again
        session = attach(config, worker)
        self.nfp_session = session
        return bool(session.active)

    def nfp_fault(self, fault: str) -> None:
        """From now on the stage fails."""
        os.environ[faults.ENV_VAR] = fault
        faults.arm()

    def nfp_write(self, rank: int) -> None:
        """From now on probes of this rank change a value of the KV cache's null block."""
        import torch

        from vllm_nfp.probe.forward import Forward

        worker: Any = self
        if torch.distributed.get_rank() != rank:
            return
        runner, real = worker.model_runner, Forward.run_model

        def run_model(forward: Any, batch: Any, metadata: Any) -> Any:
            for cache in runner.kv_caches:
                dim = list(cache.shape).index(runner.kv_cache_config.num_blocks)
                cache.select(dim, 0).view(torch.int32).add_(1)
            return real(forward, batch, metadata)

        Forward.run_model = run_model  # type: ignore[method-assign]
        self.nfp_unpatch = lambda: setattr(Forward, "run_model", real)

    def nfp_state(self) -> tuple[bool, bool]:
        """Whether the rank takes part, and whether its runner is hooked."""
        worker: Any = self
        return self.nfp_session.active, "execute_model" in vars(worker.model_runner)

    def nfp_detach(self) -> None:
        """Take the session off, on all ranks between two steps."""
        if self.nfp_session.active:
            self.nfp_session.disable("the test is over", expected=True)
        self.nfp_unpatch()
