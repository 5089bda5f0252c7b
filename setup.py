"""Copies ``dashboards/``, which lies beside the package, into built packages."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PATTERNS = (
    "grafana/*.json",
    "rules/*.yml",
    "provisioning/**/*.yml",
    "kubernetes/*",
    "prometheus.yml",
    "compose.yaml",
)


class BuildWithDashboards(build_py):
    """Adds the folder as data of ``vllm_nfp.dashboards``; an editable install reads it in place."""

    def run(self) -> None:
        """Build the package, then add the files."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "vllm_nfp", "dashboards", "data")
        for pattern in PATTERNS:
            for path in Path("dashboards").glob(pattern):
                copy = target / path.relative_to("dashboards")
                copy.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(path), str(copy))


setup(cmdclass={"build_py": BuildWithDashboards})
