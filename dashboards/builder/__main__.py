"""Writes the dashboards' JSON: ``python -m dashboards.builder [DIRECTORY]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.builder.deep_dive import UID as DEEP_DIVE
from dashboards.builder.deep_dive import deep_dive
from dashboards.builder.fleet import UID as FLEET
from dashboards.builder.fleet import fleet
from dashboards.builder.overview import UID as OVERVIEW
from dashboards.builder.overview import overview
from vllm_nfp.dashboards.export import source_folder


def texts() -> dict[str, str]:
    """File name -> JSON of each dashboard."""
    pages = {OVERVIEW: overview(), DEEP_DIVE: deep_dive(), FLEET: fleet()}
    return {
        f"{uid}.json": json.dumps(page, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for uid, page in pages.items()
    }


def main(folder: Path) -> None:
    """Write the dashboards' JSON to ``folder``."""
    for name, text in texts().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else source_folder() / "grafana")
