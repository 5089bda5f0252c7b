"""Parts of a config.json: one file for each kind of part of a layer."""
