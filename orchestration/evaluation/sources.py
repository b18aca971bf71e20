"""What is evaluated and what it is compared with, from a training run and a corpus."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.evaluation.videos import Item
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    from uniavgen.shards.corpus.tables import Corpus

SAMPLE_NAME = re.compile(r"^(?P<task>[a-z-]+)-(?P<clip>[0-9a-f]+)-seed(?P<seed>\d+)$")
"""Name of a video that `uniavgen sample` writes."""


def corpus_items(corpus: Corpus, count: int) -> list[Item]:
    """Up to `count` kept clips as real videos, of val first and of as many speakers as possible.

    Their reference voice and portrait are another clip of the same speaker, where there is one. Raises
    UserError without kept clips.
    """
    rows = kept_clips(corpus)
    if not rows:
        raise UserError(
            "the corpus has no kept clip", where=corpus.root, hint="uniavgen curate, or name another corpus"
        )
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_speaker.setdefault(row["person"], []).append(row)
    chosen = round_robin(list(by_speaker.values()))[:count]
    return [clip_item(corpus, row, by_speaker[row["person"]]) for row in chosen]


def run_items(run_dir: Path, corpus: Corpus) -> list[Item]:
    """The videos that `uniavgen sample` wrote in a run, with the words of the window that each was made from.

    Raises UserError without any.
    """
    from uniavgen.train.checkpoint.trained_model import trained_config

    folder = run_dir / "samples"
    paths = [path for path in sorted(folder.glob("*.mp4")) if SAMPLE_NAME.match(path.stem)]
    if not paths:
        raise UserError(
            "the run has no generated videos", where=folder, hint="uniavgen sample, or name --videos"
        )
    data = trained_config(run_dir)[1].data
    rows = {row["clip_id"]: row for row in kept_clips(corpus)}
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        by_speaker.setdefault(row["person"], []).append(row)
    items = []
    for path in paths:
        match = SAMPLE_NAME.match(path.stem)
        assert match is not None
        row = rows.get(match["clip"], {})
        item = Item(path.stem, str(path), conditions={"task": match["task"]})
        if row:
            real = clip_item(corpus, row, by_speaker[row["person"]])
            text = spoken_text(corpus, match["clip"], int(match["seed"]), data)
            files = {"voice": real.voice or real.audio, "image": real.video, "truth": real.video}
            conditions = {**real.conditions, "task": match["task"]}
            item = Item(path.stem, str(path), text=text, conditions=conditions, **files)
        items.append(item)
    return items


def spoken_text(corpus: Corpus, clip: str, seed: int, data: Any) -> str:
    """The words of the window of a clip that `uniavgen sample` uses; "" if the clip is in no shard."""
    from uniavgen.shards.read.stream import SampleStream
    from uniavgen.train.generation import conditions_from

    for split in ("val", "train"):
        try:
            stream = SampleStream(str(corpus.root / "shards"), split)
        except UserError:
            continue
        if clip in stream.keys:
            return conditions_from(stream.sample_by_key(clip), data, seed).speech
    return ""


def kept_clips(corpus: Corpus) -> list[dict[str, Any]]:
    """Rows of kept clips with split, policy and person (of all sources), those of val first, then by id."""
    from uniavgen.curation.people.identities import stored_persons

    persons = stored_persons(corpus)
    kept = {row["clip_id"]: row for row in corpus.read("decisions").to_pylist() if row["kept"]}
    rows = []
    for row in corpus.read("clips").to_pylist():
        if row["clip_id"] in kept:
            decision = kept[row["clip_id"]]
            speaker = row["speaker"] or row["source_id"]
            person = persons.get(speaker, speaker)
            policy = decision["policy_digest"] or ""
            rows.append({**row, "split": decision["split"], "policy": policy[:8], "person": person})
    return sorted(rows, key=lambda row: (row["split"] != "val", row["clip_id"]))


def clip_item(corpus: Corpus, row: Mapping[str, Any], of_speaker: Sequence[Mapping[str, Any]]) -> Item:
    """A clip of the corpus as a real video."""
    clip = row["clip_id"]
    other = next((each["clip_id"] for each in of_speaker if each["clip_id"] != clip), None)
    return Item(
        clip,
        str(corpus.media_path(clip, "mp4")),
        str(corpus.media_path(clip, "flac")),
        row["transcript"] or "",
        str(corpus.media_path(other, "flac")) if other else "",
        str(corpus.media_path(other or clip, "mp4")),
        conditions=clip_conditions(row),
    )


def clip_conditions(row: Mapping[str, Any]) -> dict[str, str | float]:
    """What scores are sliced by: every measured signal, language, speaker, length, split and policy."""
    from uniavgen.shards.corpus.signals import SIGNALS

    conditions: dict[str, str | float] = {
        name: float(row[name])
        for name in SIGNALS
        if isinstance(row.get(name), float) and math.isfinite(row[name])
    }
    conditions["length_s"] = row["end_s"] - row["start_s"]
    texts = {"speaker": row["person"], **{name: row[name] for name in ("language", "split", "policy")}}
    conditions |= {name: value for name, value in texts.items() if value}
    return conditions


def round_robin(groups: Iterable[Sequence[Any]]) -> list[Any]:
    """One of each group in turn, until all are empty."""
    queues = [list(group) for group in groups]
    chosen = []
    while any(queues):
        chosen += [queue.pop(0) for queue in queues if queue]
    return chosen
