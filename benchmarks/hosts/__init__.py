"""What a benchmark needs of the host that it runs on."""
