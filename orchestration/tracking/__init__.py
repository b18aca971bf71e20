"""MLflow: runs, their metrics, descriptions and artifacts."""
