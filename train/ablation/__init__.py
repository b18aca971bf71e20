"""The paper's ablations on a small world with a known law: the world, its read-outs, the rows, one experiment, the verdicts."""
