"""Captions of the kept clips: from measurements, or from a vision-language model."""
