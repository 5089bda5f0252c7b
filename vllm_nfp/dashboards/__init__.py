"""Exports the Grafana dashboards and Prometheus rules, for files or for Kubernetes.

The files are in the repository's ``dashboards/`` and are copied into wheels. In a checkout,
``python -m dashboards.builder`` generates the dashboards' JSON.
"""

from vllm_nfp.dashboards.export import Exported, ExportError, export, source_folder

__all__ = ["ExportError", "Exported", "export", "source_folder"]
