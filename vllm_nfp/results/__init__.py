"""Results on disk: the snapshot of a server, profiles, comparisons, and the readers of them."""
