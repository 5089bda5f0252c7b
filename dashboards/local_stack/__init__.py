"""A server with the probe and a Prometheus that scrapes it, on this machine alone."""
