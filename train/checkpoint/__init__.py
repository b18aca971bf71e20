"""The run folder: checkpoints, resume, conversion and export."""
