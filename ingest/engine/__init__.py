"""Ray workers, the watchdog, the step cache, progress and commits."""
