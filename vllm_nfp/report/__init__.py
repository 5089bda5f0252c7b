"""A profile as one HTML file that needs no network and no script.

Needs matplotlib and jinja2: ``pip install 'vllm-nfp[report]'``.
"""

from vllm_nfp.report.page import ReportError, render, write_report

__all__ = ["ReportError", "render", "write_report"]
