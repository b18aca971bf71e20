"""DeepSpeed around a model: settings, engine, step guard, moving average of the weights, collectives."""
