"""vLLM's CPU platform for Ray, whose workers on a CPU vLLM refuses: it gives Ray no resource.

Ray then places a worker on each of its "GPUs", of which ``ray start --num-gpus`` invents as many as
it is told to. Used by test_ray.py as a platform plugin of vLLM's.
"""

from __future__ import annotations

from pathlib import Path

from vllm.platforms.cpu import CpuPlatform

ENTRY_POINT = "[vllm.platform_plugins]\nray_on_cpu = ray_platform:register\n"


class RayCpuPlatform(CpuPlatform):
    ray_device_key = "GPU"


def register() -> str:
    return f"{__name__}.RayCpuPlatform"


def install(folder: Path) -> None:
    """Lets vLLM find the plugin where the folder and this one are on PYTHONPATH."""
    about = folder / "ray_on_cpu-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ray-on-cpu\nVersion: 0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINT)
