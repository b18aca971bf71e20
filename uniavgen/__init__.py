"""UniAVGen: from raw talking-head videos to a trained joint audio-video generator."""

__version__ = "0.4.0.dev0"
