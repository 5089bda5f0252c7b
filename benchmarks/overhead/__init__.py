"""What the probe costs a server: latency, tokens/s, its own threads, hours of traffic."""
