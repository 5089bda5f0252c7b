"""Starts and queries a Prometheus on 127.0.0.1, for the local stack and for tests."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nfp.start.ports import free_port
from vllm_nfp.start.process import Child

STARTUP_LIMIT_SECONDS = 60.0


class PrometheusError(RuntimeError):
    """Prometheus is not installed, or refused a query; the message says why."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a query result."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]
    """(Unix time in seconds, value), ascending; one of them for an instant query."""


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The API of a running Prometheus."""

    url: str

    def now(self, expr: str) -> list[Series]:
        """The query's values now.

        Raises:
            PrometheusError: if Prometheus refuses the query.
        """
        return _series(self._get("query", query=expr))

    def range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """The query's values from start to end (Unix seconds), one each step (seconds)."""
        window = {"start": str(start), "end": str(end), "step": str(step)}
        return _series(self._get("query_range", query=expr, **window))

    def label_values(self, metric: str, label: str) -> list[str]:
        """Values of a label among the series of a metric."""
        values = self._get(f"label/{label}/values", **{"match[]": metric})
        return [str(value) for value in values]

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing, as Prometheus gives them."""
        return list(self._get("alerts")["alerts"])

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their health, as Prometheus gives them."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: str) -> Any:
        address = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            reason = json.load(error).get("error", error.reason)
            raise PrometheusError(f"Prometheus refused {parameters or what}: {reason}") from None


def _series(data: Mapping[str, Any]) -> list[Series]:
    if data["resultType"] == "scalar":
        data = {"result": [{"metric": {}, "value": data["result"]}]}
    return [
        Series(
            entry["metric"],
            tuple((float(t), float(v)) for t, v in entry.get("values") or [entry["value"]]),
        )
        for entry in data["result"]
    ]


def program_path() -> str:
    """Path of the prometheus command.

    Raises:
        PrometheusError: if it is not installed.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise PrometheusError(
            "the prometheus command is not installed: on Debian, apt install prometheus"
        )
    return program


@contextmanager
def running_prometheus(
    folder: Path, targets: Sequence[str], rules: Path | None, scrape_seconds: int = 1
) -> Iterator[Prometheus]:
    """Start Prometheus on a free port of 127.0.0.1, wait until it is ready, and stop it at the end.

    Args:
        folder: for its configuration, data and log.
        targets: host:port of the servers to scrape.
        rules: the file with the rules, if any.
        scrape_seconds: between two scrapes, and two evaluations of the rules.

    Raises:
        PrometheusError: if it is not installed.
        ProcessError: if it does not start.
    """
    program = program_path()
    folder.mkdir(parents=True, exist_ok=True)
    config, log_path = folder / "prometheus.yml", folder / "prometheus.log"
    # JSON is YAML, and quotes every path and address.
    config.write_text(
        json.dumps(
            {
                "global": {
                    "scrape_interval": f"{scrape_seconds}s",
                    "scrape_timeout": f"{scrape_seconds}s",
                    "evaluation_interval": f"{scrape_seconds}s",
                },
                "rule_files": [_as_pattern(rules)] if rules else [],
                "scrape_configs": [
                    {"job_name": "vllm", "static_configs": [{"targets": list(targets)}]}
                ],
            },
            indent=1,
        ),
        encoding="utf-8",
    )
    port = free_port()
    command = [
        program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with Child(command, log_path, name="Prometheus") as child:
        child.wait_until(lambda: _is_ready(url), STARTUP_LIMIT_SECONDS, poll_seconds=0.1)
        yield Prometheus(url)


def _is_ready(url: str) -> bool:
    with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/-/ready"):
        return True
    return False


def _as_pattern(path: Path) -> str:
    """Escape a path for Prometheus' glob. Asterisks cannot be escaped in a directory's name."""
    return re.sub(r"([\\?\[\]])", r"\\\1", str(path))
