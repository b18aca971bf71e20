"""The demo corpus: short videos of a speaking portrait with known truth, and the score against that truth."""
