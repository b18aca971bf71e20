"""Bytes in: sources, URIs, the download cache, ffmpeg and probing."""
