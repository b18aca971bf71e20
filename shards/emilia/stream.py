"""Read Emilia tars for training: random access to an endless seeded sequence of utterances.

The utterance at a position is a pure function of (tars, filters, window, seed, position), so a run resumes at
any position on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from uniavgen.shards.config import EmiliaConfig, ErrorBudgetConfig
from uniavgen.shards.emilia.index import find_tars, read_index
from uniavgen.shards.emilia.sample import Utterance, utterance_from
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.error_budget import ErrorBudget
from uniavgen.shards.read.sampler import BucketSampler, Place
from uniavgen.shards.tar.tar_reader import read_members

OPEN_THREADS = 16
"""Number of tars indexed at once when a stream opens. Heuristic."""


class EmiliaStream:
    """Endless seeded sequence of the utterances that pass the filters and fit a window of `window_s` seconds.

    A sample with an unusable json passes the filters, and is counted as damaged when it is read. `shards`
    (path to digest) selects the tars with these digests, also if they were moved. `place`: where the sequence
    was changed. `cache` is a folder for
    indexes that cannot be stored beside their tars. Raises UserError if there are no tars, one is damaged, a
    selected one is missing or changed, or no utterance passes.
    """

    buckets = None
    """Utterances are in one bucket, because the window length is fixed (train.data.frames)."""

    def __init__(
        self,
        config: EmiliaConfig,
        window_s: float,
        seed: int = 0,
        *,
        shards: Mapping[str, str] | None = None,
        place: Place | None = None,
        error_budget: ErrorBudgetConfig | None = None,
        cache: Path | None = None,
    ) -> None:
        self.config, self.place = config, place or Place()
        tars = find_tars(config.shards)
        with ThreadPoolExecutor(OPEN_THREADS, thread_name_prefix="open") as pool:
            opened = list(zip(tars, pool.map(lambda tar: read_index(tar, cache), tars), strict=True))
        if shards is not None:
            by_digest = {index.digest: (tar, index) for tar, index in reversed(opened)}
            # of several tars with one digest, each path keeps its own
            at_path = {(tar.where, index.digest): (tar, index) for tar, index in opened}
            missing = [name for name, digest in shards.items() if digest not in by_digest]
            if missing:
                raise UserError(
                    f"{len(missing)} of the run's {len(shards)} audio shards are missing or changed, "
                    f"first {missing[0]}",
                    hint="restore them, or start the stage again on the current shards",
                    kind="shards-changed",
                )
            opened = [at_path.get(named) or by_digest[named[1]] for named in shards.items()]
        self._tars = [tar for tar, _ in opened]
        self.shards: dict[str, str] = {tar.where: index.digest for tar, index in opened}
        self._tar = np.repeat(np.arange(len(opened), dtype=np.int32), [len(index) for _, index in opened])
        names = ("key", "offset", "length", "seconds", "dnsmos", "speaker", "language", "damaged")
        column = {name: np.concatenate([getattr(index, name) for _, index in opened]) for name in names}
        self._key, self._offset, self._length = column["key"], column["offset"], column["length"]
        passes, self.left_out = _filtered(column, config, window_s)
        self._rows = np.flatnonzero(passes["fits"])
        if not len(self._rows):
            reasons = ", ".join(f"{count} for {reason}" for reason, count in self.left_out.items())
            raise UserError(
                f"none of {len(self._tar)} utterances passes (left out: {reasons}); "
                f"the window lasts {window_s:.2f} s",
                where=", ".join(config.shards),
                hint="raise train.data.frames, set word_gaps: true, or loosen the stage's emilia filters",
                kind="no-shards",
            )
        self._group_by_speaker(column["speaker"], passes["wanted"] & ~column["damaged"])
        self.sampler = BucketSampler(np.zeros(len(self._rows), np.int64), seed=seed)
        hint = "check these tars, or raise train.data.damage"
        self.error_budget = ErrorBudget(
            error_budget or ErrorBudgetConfig(), len(self), ", ".join(config.shards), hint
        )

    def __len__(self) -> int:
        """Number of utterances in one epoch."""
        return len(self._rows)

    @property
    def keys(self) -> list[str]:
        """Key of every utterance, in the order of the tars."""
        return [key.decode() for key in self._key[self._rows].tolist()]

    @property
    def line(self) -> str:
        """One line for the log: number of utterances and what the filters leave out."""
        left_out = (
            ", ".join(f"{reason} {count}" for reason, count in self.left_out.items() if count) or "none"
        )
        return f"{len(self)} utterances in {len(self.shards)} audio shards; left out: {left_out}"

    def sample_at(self, position: int) -> Utterance:
        """Read and decode the utterance at a position.

        Raises UserError of kind `damaged-sample` that names the tar, or `too-many-damaged` above the error
        budget.
        """
        return self._read(int(self._rows[self.sampler.sample_at(position)]))

    def shard_and_key_at(self, position: int) -> tuple[str, str]:
        """(tar, key) of the utterance at a position, without reading it."""
        row = self._rows[self.sampler.sample_at(position)]
        return self._tars[self._tar[row]].name, self._key[row].decode()

    def other_by_speaker(self, position: int, random: np.random.Generator) -> Utterance | None:
        """Draw another utterance, of any length, by the speaker at a position; None if there is none.

        Raises the errors of `sample_at`.
        """
        row = int(self._rows[self.sampler.sample_at(position)])
        speaker = self._speaker_of[row]
        others = (
            self._by_speaker[self._first[speaker] : self._first[speaker + 1]]
            if speaker >= 0
            else self._by_speaker[:0]
        )
        if len(others) < 2:
            return None
        drawn = int(random.integers(len(others) - 1))
        this = int(np.searchsorted(others, row))  # the rows of a speaker are sorted
        return self._read(int(others[drawn + (drawn >= this)]))

    def _group_by_speaker(self, speaker: np.ndarray, usable: np.ndarray) -> None:
        """Group usable rows by speaker: `_by_speaker[_first[s] : _first[s + 1]]` are those of speaker s."""
        rows = np.flatnonzero(usable)
        names, number = np.unique(speaker[rows], return_inverse=True)
        self._speaker_of = np.full(len(speaker), -1, np.int64)
        self._speaker_of[rows] = number
        self._by_speaker = rows[np.argsort(number, kind="stable")]
        self._first = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=len(names)))])

    def _read(self, row: int) -> Utterance:
        tar, key = self._tars[self._tar[row]], self._key[row].decode()
        self.error_budget.count_read()
        try:
            try:
                span = tar.store.read_span(tar.name, int(self._offset[row]), int(self._length[row]))
                return utterance_from(key, read_members(span, key, tar.where))
            except UserError as error:
                raise UserError(error.what, where=error.where or tar.where, kind=error.kind) from error
        except UserError as error:
            if error.kind == "damaged-sample":
                self.error_budget.record_failure(key, error)
            raise


def _filtered(
    column: Mapping[str, np.ndarray], config: EmiliaConfig, window_s: float
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """bool [n] of rows that pass the filters (`wanted`) and also fit the window (`fits`); counts by
    reason."""
    damaged = column["damaged"]
    tests = {
        "language": _among(column["language"], config.languages),
        "speaker": _among(column["speaker"], config.speakers),
        "dnsmos": column["dnsmos"] >= config.min_dnsmos,
        "length": (column["seconds"] <= window_s) | (config.longer == "crop") | config.word_gaps,
    }
    left_out: dict[str, int] = {}
    passes, wanted = np.ones(len(damaged), bool), damaged
    for reason, test in tests.items():
        left_out[reason] = int((passes & ~(test | damaged)).sum())
        if reason == "length":
            wanted = passes.copy()
        passes &= test | damaged
    return {"wanted": wanted, "fits": passes}, left_out


def _among(values: np.ndarray, names: list[str]) -> np.ndarray:
    return np.isin(values, [name.encode() for name in names]) if names else np.ones(len(values), bool)
