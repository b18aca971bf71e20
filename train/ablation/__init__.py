"""The paper's ablations with small models on made data: data, measures, tables, experiments, verdicts."""
