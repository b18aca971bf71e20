"""Error budget of a stream: count and log damaged samples, and stop the run at too many."""

from __future__ import annotations

import logging
from threading import Lock

from uniavgen.shards.config import ErrorBudgetConfig
from uniavgen.shards.errors import UserError

log = logging.getLogger(__name__)


class ErrorBudget:
    """Counts the damaged samples of a stream with `samples` samples. Threads may share it."""

    def __init__(
        self,
        config: ErrorBudgetConfig,
        samples: int,
        where: object,
        hint: str = "check the shards: uniavgen shard --verify",
    ) -> None:
        self.config, self.where, self.hint = config, where, hint
        self.damaged: dict[str, str] = {}
        """Key of each damaged sample so far, with the error message."""
        self.reads = 0
        self._samples = samples
        self._lock = Lock()

    def count_read(self) -> None:
        """Count an attempt to read a sample."""
        with self._lock:
            self.reads += 1

    def record_failure(self, key: str, error: UserError) -> None:
        """Record a damaged sample, once per key.

        Raises UserError of kind `too-many-damaged` if there are more than both bounds allow.
        """
        with self._lock:
            if key in self.damaged:
                return
            self.damaged[key] = str(error)
            count, read = len(self.damaged), min(self.reads, self._samples)
        log.warning("damaged sample %s, number %d: %s", key, count, error)
        if count > max(self.config.max_samples, self.config.max_share * read):
            raise UserError(
                f"{count} of {read} samples read are damaged, the last: {error}",
                where=self.where,
                hint=self.hint,
                kind="too-many-damaged",
            )
