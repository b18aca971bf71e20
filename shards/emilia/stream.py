"""Reading Emilia's tars for training, as they are: utterances in the endless seeded order of `shards.order`, by index.

In: an EmiliaConfig and the window's length. Out: what `shards.stream.SampleStream` gives of clips, for utterances: which one
stands at a position is a pure function of (tars, filters, window, seed, position), so a run resumes at any position on any
number of ranks. A sample that cannot be used is counted, named, and too many end the run, by the same ledger.
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
from uniavgen.shards.read.sampler import BucketSampler
from uniavgen.shards.tar.tar_reader import read_members

OPEN_THREADS = 16
"""Tars that are looked at at once when a stream opens (our choice)."""


class EmiliaStream:
    """The utterances that pass the filters and fit a window of `window_s` seconds, in an endless seeded order.

    A sample whose json cannot be used passes, since nothing is known of it: it is counted as damaged when its turn comes.
    `shards` (path to digest) keeps to the tars of these digests, wherever they stand now. `cache` is a folder for indexes that
    cannot stand beside their tars. Raises UserError where there are no tars, one is damaged, a named one is gone or
    changed, or nothing passes.
    """

    buckets = None
    """Utterances are of one bucket: the window's length is that of train.data.frames."""

    def __init__(
        self,
        config: EmiliaConfig,
        window_s: float,
        seed: int = 0,
        *,
        shards: Mapping[str, str] | None = None,
        error_budget: ErrorBudgetConfig | None = None,
        cache: Path | None = None,
    ) -> None:
        self.config = config
        tars = find_tars(config.shards)
        with ThreadPoolExecutor(OPEN_THREADS, thread_name_prefix="open") as pool:
            opened = list(zip(tars, pool.map(lambda tar: read_index(tar, cache), tars), strict=True))
        if shards is not None:
            by_digest = {index.digest: (tar, index) for tar, index in reversed(opened)}
            # of copies with one digest, each stays the one that it was
            at_place = {(tar.where, index.digest): (tar, index) for tar, index in opened}
            gone = [name for name, digest in shards.items() if digest not in by_digest]
            if gone:
                raise UserError(
                    f"{len(gone)} of the run's {len(shards)} audio shards are gone or changed, first {gone[0]}",
                    hint="bring them back, or begin the stage anew on the shards there are",
                    kind="shards-changed",
                )
            opened = [at_place.get(named) or by_digest[named[1]] for named in shards.items()]
        self._tars = [tar for tar, _ in opened]
        self.shards: dict[str, str] = {tar.where: index.digest for tar, index in opened}
        self._tar = np.repeat(np.arange(len(opened), dtype=np.int32), [len(index) for _, index in opened])
        names = ("key", "offset", "length", "seconds", "dnsmos", "speaker", "language", "damaged")
        column = {name: np.concatenate([getattr(index, name) for _, index in opened]) for name in names}
        self._key, self._offset, self._length = column["key"], column["offset"], column["length"]
        passes, self.left_out = _filtered(column, config, window_s)
        self._rows = np.flatnonzero(passes["fits"])
        if not len(self._rows):
            told = ", ".join(f"{count} for {reason}" for reason, count in self.left_out.items())
            raise UserError(
                f"none of {len(self._tar)} utterances passes (left out: {told}); the window lasts {window_s:.2f} s",
                where=", ".join(config.shards),
                hint="raise train.data.frames, set longer: crop, or loosen the stage's emilia filters",
                kind="no-shards",
            )
        self._voices(column["speaker"], passes["wanted"] & ~column["damaged"])
        self.sampler = BucketSampler(np.zeros(len(self._rows), np.int64), seed=seed)
        hint = "look at the tars named, or raise train.data.damage"
        self.error_budget = ErrorBudget(
            error_budget or ErrorBudgetConfig(), len(self), ", ".join(config.shards), hint
        )

    def __len__(self) -> int:
        """Utterances in one epoch."""
        return len(self._rows)

    @property
    def keys(self) -> list[str]:
        """Every utterance's key, in the order of the tars."""
        return [key.decode() for key in self._key[self._rows].tolist()]

    @property
    def line(self) -> str:
        """What the stream holds and what it leaves out."""
        left_out = (
            ", ".join(f"{reason} {count}" for reason, count in self.left_out.items() if count) or "none"
        )
        return f"{len(self)} utterances in {len(self.shards)} audio shards; left out: {left_out}"

    def sample_at(self, position: int) -> Utterance:
        """The utterance at a position of the endless order, decoded.

        Raises UserError of kind `damaged-sample` naming the tar, or `too-many-damaged` once there were too many.
        """
        return self._read(int(self._rows[self.sampler.sample_at(position)]))

    def shard_and_key_at(self, position: int) -> tuple[str, str]:
        """(tar, key) of the utterance at a position, without reading it."""
        row = self._rows[self.sampler.sample_at(position)]
        return self._tars[self._tar[row]].name, self._key[row].decode()

    def other_by_speaker(self, position: int, random: np.random.Generator) -> Utterance | None:
        """Another utterance by the speaker at a position, of any length, drawn evenly; None where there is none.

        Raises as `sample_at` does.
        """
        row = int(self._rows[self.sampler.sample_at(position)])
        voice = self._voice_of[row]
        others = (
            self._by_voice[self._first[voice] : self._first[voice + 1]] if voice >= 0 else self._by_voice[:0]
        )
        if len(others) < 2:
            return None
        drawn = int(random.integers(len(others) - 1))
        own = int(np.searchsorted(others, row))  # rows of a voice rise
        return self._read(int(others[drawn + (drawn >= own)]))

    def _voices(self, speaker: np.ndarray, usable: np.ndarray) -> None:
        """Group the usable rows by speaker: `_by_voice` holds them voice by voice, each from `_first` of its voice on."""
        rows = np.flatnonzero(usable)
        names, voice = np.unique(speaker[rows], return_inverse=True)
        self._voice_of = np.full(len(speaker), -1, np.int64)
        self._voice_of[rows] = voice
        self._by_voice = rows[np.argsort(voice, kind="stable")]
        self._first = np.concatenate([[0], np.cumsum(np.bincount(voice, minlength=len(names)))])

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
    """Rows that are `wanted` by the filters and those that also `fits` the window, bool [n]; counts left out by reason."""
    damaged = column["damaged"]
    tests = {
        "language": _among(column["language"], config.languages),
        "speaker": _among(column["speaker"], config.speakers),
        "dnsmos": column["dnsmos"] >= config.min_dnsmos,
        "length": (column["seconds"] <= window_s) | (config.longer == "crop"),
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
