"""The dual-branch model, its objective, its three stages and its sampler."""
