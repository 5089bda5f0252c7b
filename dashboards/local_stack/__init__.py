"""A server with the probe and a Prometheus that scrapes it, on 127.0.0.1 only."""
