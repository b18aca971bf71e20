"""Policies over the clips table, the decisions they lead to, and what-if questions."""
