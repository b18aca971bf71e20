"""The run folder of a training run: checkpoints, resume, conversion and export."""
