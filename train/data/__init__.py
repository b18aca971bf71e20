"""From samples to batches of latents."""
