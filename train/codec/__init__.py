"""What stands between media and tokens: video, audio and text codecs."""
