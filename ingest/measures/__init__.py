"""One file per measurement: its step, its signals and its code version."""
