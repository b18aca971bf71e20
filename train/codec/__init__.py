"""Frozen codecs: video, audio and text to latents and back."""
