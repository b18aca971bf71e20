"""Plan files: which steps a plan has, which of them have to run, running them, and the state of a plan."""
