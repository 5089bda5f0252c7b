"""Draft lengths that were chosen, against every fixed one."""
