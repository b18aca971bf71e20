"""Delete a source or a person from a corpus: tables, media, step cache, captions, cached latents, splits and
reports.

A deletion can be killed at any time: it writes a journal first, then tombstones, then deletes rows and files.
The next deletion finishes a journal that it finds. The shard writer rewrites the shards afterwards: it drops
clips that are in no table.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniavgen.curation.config import SplitConfig
from uniavgen.curation.people.identities import SPEAKER, compare_speakers, connected_components
from uniavgen.shards.atomic_files import locked
from uniavgen.shards.corpus.deletion import add_tombstones, rewrite_table
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import LATENTS_LOCK, delete_latents
from uniavgen.shards.uris import local_path, uri_of

JOURNAL = ".forgetting.json"

RUN_AGAIN = "run it again when that has ended"
"""Hint if another run holds a lock."""


@dataclass(frozen=True)
class Target:
    """What is to be deleted: `sources` as a whole, and of the sources in `shared` only what belongs to
    `speakers`.

    `perhaps` are speakers that may be the same person. They are not deleted: a user must look.
    """

    sources: frozenset[str]
    speakers: frozenset[str]
    shared: frozenset[str]
    clips: frozenset[str]
    perhaps: frozenset[str] = frozenset()


@dataclass
class DeletionSummary:
    """What was deleted: rows by table, files, and the seconds of the clips."""

    clips: int = 0
    sources: int = 0
    seconds: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)
    files: int = 0


def find_source(corpus: Corpus, name: str) -> Target:
    """The source with this id (or a prefix of it), path, URL or file name.

    Raises UserError if none or several match.
    """
    uri = uri_of(name)
    rows = corpus.query(
        "SELECT source_id, uri FROM sources UNION SELECT source_id, uri FROM failures"
    ).to_pylist()
    rows = [row for row in rows if row["source_id"]]
    exact = {row["source_id"] for row in rows if row["uri"] in (name, uri)}
    by_prefix_or_file_name = {
        row["source_id"]
        for row in rows
        if row["source_id"].startswith(name)
        or (local_path(row["uri"]) or row["uri"]).rpartition("/")[2] == name
    }
    sources = exact or by_prefix_or_file_name
    if len(sources) != 1:
        what = f"{len(sources)} sources match this name" if sources else "no such source in this corpus"
        raise UserError(what, where=name, hint="give its source_id or its full path", kind="no-such-source")
    clips = corpus.query("SELECT clip_id, source_id FROM clips").to_pylist()
    return Target(
        sources=frozenset(sources),
        speakers=frozenset(),
        shared=frozenset(),
        clips=frozenset(clip["clip_id"] for clip in clips if clip["source_id"] in sources),
    )


def find_speaker(corpus: Corpus, speaker: str, split: SplitConfig, *, cache: bool = True) -> Target:
    """A speaker, and the same person's speakers in other sources. `cache`: store the compared pairs.

    Raises UserError if there is no such speaker.
    """
    pairs = compare_speakers(corpus, split, cache=cache)
    if speaker not in pairs.speakers:
        raise UserError(
            "no such speaker",
            where=speaker,
            hint="take it from the report or clips.speaker",
            kind="no-such-speaker",
        )
    labels = connected_components(len(pairs.speakers), [pairs.same]).tolist()
    wanted = labels[pairs.speakers.index(speaker)]
    person = {index for index, label in enumerate(labels) if label == wanted}
    near = {other for pair in pairs.near.tolist() if set(pair) & person for other in pair} - person
    names = frozenset(pairs.speakers[index] for index in person)
    rows = corpus.query(f"SELECT clip_id, source_id, {SPEAKER} AS speaker FROM clips").to_pylist()
    rows = [row for row in rows if row["speaker"] in names]
    return Target(
        sources=frozenset(),
        speakers=names,
        shared=frozenset(row["source_id"] for row in rows),
        clips=frozenset(row["clip_id"] for row in rows),
        perhaps=frozenset(pairs.speakers[index] for index in near),
    )


def delete(corpus: Corpus, target: Target) -> DeletionSummary:
    """Delete the target everywhere but in the shards, and leave tombstones.

    Finishes an earlier deletion first.

    Raises UserError (`busy`) while latents are cached: they would be written after this deletion.
    """
    summary = DeletionSummary()
    journal = corpus.root / JOURNAL
    busy = "nothing was deleted: another run caches, copies or deletes latents in this corpus"
    with locked(corpus.root / LATENTS_LOCK, busy, RUN_AGAIN):
        if journal.is_file():
            _delete_target(corpus, _read_journal(journal), DeletionSummary())
        part = journal.with_suffix(".part")
        part.write_text(json.dumps({name: sorted(value) for name, value in vars(target).items()}))
        os.replace(part, journal)
        # shared sources are never measured again: that would bring the speaker back
        add_tombstones(corpus.root, {*target.sources, *target.shared, *target.speakers})
        _delete_target(corpus, target, summary)
    return summary


def is_unfinished(corpus: Corpus) -> bool:
    """Whether an earlier deletion was killed before its end."""
    return (corpus.root / JOURNAL).is_file()


def summary_rows(summary: DeletionSummary) -> list[tuple[str, Any]]:
    """The summary as rows of a printed table."""
    rows: list[tuple[str, Any]] = [(f"rows of {name}", count) for name, count in sorted(summary.rows.items())]
    return [*rows, ("seconds of clips", summary.seconds), ("files", summary.files)]


def _read_journal(path: Path) -> Target:
    try:
        return Target(**{name: frozenset(value) for name, value in json.loads(path.read_text()).items()})
    except (ValueError, TypeError) as error:
        raise UserError(
            "the journal of an unfinished deletion is damaged", where=path, hint="remove it and delete again"
        ) from error


def _delete_target(corpus: Corpus, target: Target, summary: DeletionSummary) -> None:
    _count(corpus, target, summary)
    for clip in target.clips:
        summary.files += _unlink(corpus.media_path(clip, name) for name in ("mp4", "flac", "face.npz"))
    for source in target.sources | target.shared:
        summary.files += _remove_tree(corpus.root / "measured" / source[:2] / source)
    for folder in ("report", "identities", "duplicates"):  # derived from the tables
        summary.files += _remove_tree(corpus.root / folder)
    summary.files += _unlink([corpus.root / "forecast.json"])
    summary.files += delete_latents(corpus.root / "shards", target.clips)
    _scrub_shared_sources(corpus, target)
    clips, sources = _sql_list(target.clips), _sql_list(target.sources)
    rewrite_table(corpus, "captions", f"clip_id NOT IN ({clips})")
    rewrite_table(corpus, "decisions", f"clip_id NOT IN ({clips})")
    clip_uris = _sql_list(f"clip:{clip}" for clip in target.clips)
    rewrite_table(
        corpus, "failures", f"coalesce(source_id, '') NOT IN ({sources}) AND uri NOT IN ({clip_uris})"
    )
    rewrite_table(corpus, "clips", f"clip_id NOT IN ({clips}) AND source_id NOT IN ({sources})")
    rewrite_table(corpus, "sources", f"source_id NOT IN ({sources})")
    (corpus.root / JOURNAL).unlink(missing_ok=True)


def _count(corpus: Corpus, target: Target, summary: DeletionSummary) -> None:
    clips, sources = _sql_list(target.clips), _sql_list(target.sources)
    conditions = {
        "clips": f"clip_id IN ({clips})",
        "captions": f"clip_id IN ({clips})",
        "decisions": f"clip_id IN ({clips})",
        "sources": f"source_id IN ({sources})",
        "failures": f"source_id IN ({sources})",
    }
    counts = {
        table: corpus.query(f"SELECT count(*) AS n FROM {table} WHERE {condition}").to_pylist()[0]["n"]
        for table, condition in conditions.items()
    }
    seconds = corpus.query(
        f"SELECT coalesce(sum(end_s - start_s), 0) AS s FROM clips WHERE clip_id IN ({clips})"
    ).to_pylist()
    summary.rows = {table: count for table, count in counts.items() if count}
    summary.clips, summary.sources, summary.seconds = (
        counts["clips"],
        counts["sources"],
        float(seconds[0]["s"]),
    )


def _scrub_shared_sources(corpus: Corpus, target: Target) -> None:
    """Remove a deleted speaker's turns and words from the rows of sources that other speakers keep."""
    if not target.shared:
        return
    rows = corpus.query(f"SELECT * FROM sources WHERE source_id IN ({_sql_list(target.shared)})").to_pylist()
    for row in rows:
        # a speaker is named <prefix of its source_id>-S<label>
        parts = [name.rpartition("-S") for name in target.speakers]
        labels = {label for prefix, _, label in parts if prefix and row["source_id"].startswith(prefix)}
        row["turns"] = [turn for turn in row["turns"] or () if not _has_label(turn["label"], labels)]
        row["words"] = [word for word in row["words"] or () if not _has_label(word["speaker"], labels)]
        row["passages"] = [p for p in row["passages"] or () if not _has_label(p["speaker"], labels)]
        row["tracks"] = []  # face tracks name no speaker, so all are removed
    corpus.upsert("sources", rows)


def _has_label(speaker: str | None, labels: set[str]) -> bool:
    return (speaker or "").rpartition("_")[2] in labels


def _sql_list(names: Iterable[str]) -> str:
    # an empty list becomes the empty text, which no id equals: NOT IN (NULL) would never be true
    return ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(names)) or "''"


def _unlink(paths: Iterable[Path]) -> int:
    existing = [path for path in paths if path.exists()]
    for path in existing:
        path.unlink()
    return len(existing)


def _remove_tree(folder: Path) -> int:
    files = sum(path.is_file() for path in folder.rglob("*")) if folder.is_dir() else 0
    shutil.rmtree(folder, ignore_errors=True)
    return files
