"""Writes the JSON of the Grafana dashboards; no part of the wheel, which has the JSON alone."""
