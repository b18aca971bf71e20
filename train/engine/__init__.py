"""DeepSpeed around a model, the moving average of the weights, and worker failures."""
