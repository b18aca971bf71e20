"""Captions of the kept clips: from measurements, or by a vision-language model."""
