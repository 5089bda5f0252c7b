"""Where the probe takes memory of the host and of the GPU."""
