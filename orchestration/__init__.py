"""The face: command line, configuration, tracking, doctor and demo."""
