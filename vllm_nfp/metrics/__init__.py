"""From results to Prometheus' metric families."""
