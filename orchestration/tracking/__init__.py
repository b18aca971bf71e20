"""MLflow: runs, stages, metrics and notes."""
