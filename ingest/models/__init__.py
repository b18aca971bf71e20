"""The networks and detectors that the measurements load."""
