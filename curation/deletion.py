"""Forget a source, or a person: every trace in tables, media, measurements, captions, cached latents, splits, pages goes.

In: a corpus and what is to be forgotten. Out: what was removed. The order makes it safe to kill: a journal first, then
tombstones, then rows and files; the next `forget` of anything finishes a journal that it finds. Shards are rewritten
afterwards by the writer, which drops a clip that is in no table.
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
from uniavgen.curation.people.identities import SPEAKER, components, likeness
from uniavgen.shards.atomic_files import locked
from uniavgen.shards.corpus.deletion import add_tombstones, rewrite_table
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import LATENTS_LOCK, delete_latents

JOURNAL = ".forgetting.json"

AGAIN = "run it again when that has ended"
"""What to do where another run is in the way."""


@dataclass(frozen=True)
class Target:
    """What is to be forgotten. Of a source in `sources` everything goes, of one in `shared` only these `speakers`' part.

    `perhaps` are speakers that may be the same person and are not forgotten: someone must look.
    """

    sources: frozenset[str]
    speakers: frozenset[str]
    shared: frozenset[str]
    clips: frozenset[str]
    perhaps: frozenset[str] = frozenset()


@dataclass
class Forgotten:
    """What was removed, by kind."""

    clips: int = 0
    sources: int = 0
    seconds: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)
    files: int = 0


def find_source(corpus: Corpus, name: str) -> Target:
    """The source that an id (or the beginning of one), a path, a URL or a file name means. Raises UserError where it means
    none or several."""
    absolute = os.path.abspath(name)
    rows = corpus.query(
        "SELECT source_id, uri FROM sources UNION SELECT source_id, uri FROM failures"
    ).to_pylist()
    rows = [row for row in rows if row["source_id"]]
    exact = {row["source_id"] for row in rows if row["uri"] in (name, absolute)}
    loose = {
        r["source_id"] for r in rows if r["source_id"].startswith(name) or r["uri"].rpartition("/")[2] == name
    }
    found = exact or loose
    if len(found) != 1:
        what = f"{len(found)} sources are meant by this name" if found else "no such source in this corpus"
        raise UserError(what, where=name, hint="give its source_id or its whole path", kind="no-such-source")
    clips = corpus.query("SELECT clip_id, source_id FROM clips").to_pylist()
    return Target(
        frozenset(found),
        frozenset(),
        frozenset(),
        frozenset(c["clip_id"] for c in clips if c["source_id"] in found),
    )


def find_speaker(corpus: Corpus, speaker: str, split: SplitConfig) -> Target:
    """A speaker, and all who are surely the same person in other sources. Raises UserError where there is none so named."""
    alike = likeness(corpus, split)
    if speaker not in alike.speakers:
        raise UserError(
            "no such speaker",
            where=speaker,
            hint="take it from the report or clips.speaker",
            kind="no-such-speaker",
        )
    labels = components(len(alike.speakers), [alike.same])
    here = labels[alike.speakers.index(speaker)]
    person = {place for place, label in enumerate(labels.tolist()) if label == here}
    near = {other for pair in alike.near.tolist() if set(pair) & person for other in pair} - person
    names = frozenset(alike.speakers[place] for place in person)
    rows = corpus.query(f"SELECT clip_id, source_id, {SPEAKER} AS speaker FROM clips").to_pylist()
    mine = [row for row in rows if row["speaker"] in names]
    return Target(
        sources=frozenset(),
        speakers=names,
        shared=frozenset(row["source_id"] for row in mine),
        clips=frozenset(row["clip_id"] for row in mine),
        perhaps=frozenset(alike.speakers[place] for place in near),
    )


def forget(corpus: Corpus, target: Target) -> Forgotten:
    """Remove the target everywhere but in the shards, and leave tombstones. Finishes an earlier one that was killed.

    Raises UserError of kind `busy` while latents are being made, which would come after what is removed here.
    """
    done = Forgotten()
    journal = corpus.root / JOURNAL
    with locked(
        corpus.root / LATENTS_LOCK,
        "nothing was forgotten: another run makes, copies or forgets latents here",
        AGAIN,
    ):
        if journal.is_file():
            _erase(corpus, _from_journal(journal), Forgotten())
        part = journal.with_suffix(".part")
        part.write_text(json.dumps({name: sorted(value) for name, value in vars(target).items()}))
        os.replace(part, journal)
        add_tombstones(
            corpus.root, {*target.sources, *target.shared, *target.speakers}
        )  # what is shared is never measured again
        _erase(corpus, target, done)
    return done


def unfinished(corpus: Corpus) -> bool:
    """Whether an earlier `forget` was killed before its end."""
    return (corpus.root / JOURNAL).is_file()


def _from_journal(path: Path) -> Target:
    try:
        return Target(**{name: frozenset(value) for name, value in json.loads(path.read_text()).items()})
    except (ValueError, TypeError) as error:
        raise UserError(
            "the journal of an unfinished forget is damaged", where=path, hint="remove it and forget again"
        ) from error


def _erase(corpus: Corpus, target: Target, done: Forgotten) -> None:
    _count(corpus, target, done)
    for clip in target.clips:
        done.files += _unlink(corpus.media_path(clip, name) for name in ("mp4", "flac", "face.npz"))
    for source in target.sources | target.shared:
        done.files += _remove_tree(corpus.root / "measured" / source[:2] / source)
    for folder in ("report", "identities", "duplicates"):  # made from the tables, and made again from them
        done.files += _remove_tree(corpus.root / folder)
    done.files += _unlink([corpus.root / "forecast.json"])
    done.files += delete_latents(corpus.root / "shards", target.clips)
    _scrub(corpus, target)
    clips, sources = _listed(target.clips), _listed(target.sources)
    rewrite_table(corpus, "captions", f"clip_id NOT IN ({clips})")
    rewrite_table(corpus, "decisions", f"clip_id NOT IN ({clips})")
    of_clips = _listed(f"clip:{clip}" for clip in target.clips)
    rewrite_table(
        corpus, "failures", f"coalesce(source_id, '') NOT IN ({sources}) AND uri NOT IN ({of_clips})"
    )
    rewrite_table(corpus, "clips", f"clip_id NOT IN ({clips}) AND source_id NOT IN ({sources})")
    rewrite_table(corpus, "sources", f"source_id NOT IN ({sources})")
    (corpus.root / JOURNAL).unlink(missing_ok=True)


def _count(corpus: Corpus, target: Target, done: Forgotten) -> None:
    clips, sources = _listed(target.clips), _listed(target.sources)
    asked = {
        "clips": f"SELECT count(*) AS n, coalesce(sum(end_s - start_s), 0) AS s FROM clips WHERE clip_id IN ({clips})",
        "captions": f"SELECT count(*) AS n, 0 AS s FROM captions WHERE clip_id IN ({clips})",
        "decisions": f"SELECT count(*) AS n, 0 AS s FROM decisions WHERE clip_id IN ({clips})",
        "sources": f"SELECT count(*) AS n, 0 AS s FROM sources WHERE source_id IN ({sources})",
        "failures": f"SELECT count(*) AS n, 0 AS s FROM failures WHERE source_id IN ({sources})",
    }
    found = {name: corpus.query(sql).to_pylist()[0] for name, sql in asked.items()}
    done.rows = {name: row["n"] for name, row in found.items() if row["n"]}
    done.clips, done.sources, done.seconds = (
        found["clips"]["n"],
        found["sources"]["n"],
        float(found["clips"]["s"]),
    )


def _scrub(corpus: Corpus, target: Target) -> None:
    """Take a forgotten speaker's turns and words out of the rows of sources that stay for the sake of others."""
    if not target.shared:
        return
    rows = corpus.query(f"SELECT * FROM sources WHERE source_id IN ({_listed(target.shared)})").to_pylist()
    for row in rows:
        named = [name.rpartition("-S") for name in target.speakers]  # after the first digits of their source
        labels = {label for head, _, label in named if head and row["source_id"].startswith(head)}
        row["turns"] = [turn for turn in row["turns"] or () if not _says(turn["label"], labels)]
        row["words"] = [word for word in row["words"] or () if not _says(word["speaker"], labels)]
        row["tracks"] = []  # faces carry no speaker's name: better none than a forgotten one's
    corpus.upsert("sources", rows)


def _says(label: str | None, labels: set[str]) -> bool:
    return (label or "").rpartition("_")[2] in labels


def _listed(names: Iterable[str]) -> str:
    # an empty list is the empty text, which no id is: NOT IN (NULL) would never be true
    return ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(names)) or "''"


def _unlink(paths: Iterable[Path]) -> int:
    gone = [path for path in paths if path.exists()]
    for path in gone:
        path.unlink()
    return len(gone)


def _remove_tree(folder: Path) -> int:
    files = sum(path.is_file() for path in folder.rglob("*")) if folder.is_dir() else 0
    shutil.rmtree(folder, ignore_errors=True)
    return files


def summary_rows(done: Forgotten) -> list[tuple[str, Any]]:
    """What was removed, for people."""
    rows: list[tuple[str, Any]] = [(f"rows of {name}", count) for name, count in sorted(done.rows.items())]
    return [*rows, ("seconds of clips", done.seconds), ("files", done.files)]
