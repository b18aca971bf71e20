"""Rules over the clips table, the decisions that they give, and what-if questions."""
