"""Video to audio: a multimodal diffusion transformer (MMAudio, AudioGen-Omni)."""
