"""Copies among the clips: which belong together, of what kind, and which one is kept.

In: the clips table (fingerprints, signals) and the verdicts of a policy. Out: a table with one row per clip that has a copy,
and the verdicts with reason `duplicate` for all but the best of them. Pairs do not depend on the policy: they are found once
for a state of the clips table and kept in `duplicates/` of the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from uniavgen.curation.config import DuplicateConfig
from uniavgen.curation.duplicates.similar_pairs import Pairs, find_pairs, sound_prints, video_prints
from uniavgen.shards.corpus.tables import Corpus

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

DUPLICATE = "duplicate"
"""Reason of a clip that passes the policy and has a better copy."""

WHOLE = 0.9
"""Share of the longer clip from which a copy is whole; below, two clips overlap. Our choice: runs cut a little apart."""

RANK = (
    "round(log2(greatest(1, width_px * height_px)) * 2) DESC NULLS LAST",
    "round(duration_s) DESC NULLS LAST",
    "round(dnsmos_overall, 1) DESC NULLS LAST",
    "round(log2(greatest(0.001, bits_per_pixel))) DESC NULLS LAST",
)
"""SQL of the rule by which the best copy is kept: more pixels (in steps of a factor of 1.4), then longer (whole seconds), then
better sound (tenths of DNSMOS), then more bits per pixel (doublings); what was kept before, then the lower clip_id. Our choice:
the steps keep noise of measurement from deciding, and a kept clip gives way to a clearly better one only."""

_CODE_VERSION = "1"


def without_duplicates(
    corpus: Corpus, verdicts: pa.Table, config: DuplicateConfig, *, cache: bool = True
) -> pa.Table:
    """Verdicts (`curation.policy.judge`) in which clips that have a better copy among those that pass are rejected."""
    if not config.enabled:
        return verdicts
    return corpus.query(
        f"""SELECT clip_id, v.kept AND d.clip_id IS NULL AS kept,
        CASE WHEN d.clip_id IS NULL THEN reason ELSE '{DUPLICATE}' END AS reason,
        CASE WHEN d.clip_id IS NULL THEN failed_rules ELSE ['{DUPLICATE}'] END AS failed_rules
        FROM verdicts v LEFT JOIN (SELECT clip_id FROM copies WHERE clip_id <> kept_clip) d USING (clip_id)""",
        verdicts=verdicts,
        copies=duplicates(corpus, verdicts, config, cache=cache),
    )


def duplicates(
    corpus: Corpus, verdicts: pa.Table, config: DuplicateConfig, *, cache: bool = True
) -> pa.Table:
    """Every clip that passes and has a copy that passes: `clip_id`, `kept_clip` (the best copy: the group's name), `kind`
    (`kept`, `copy`, `overlap`, `same-sound`, `same-picture`), `picture` and `sound` (share of differing bits against a copy of
    the group, null where they do not agree), `shared_s`, `mirrored`, `speed` (how much faster the faster one runs).

    Whole copies of copies are one group. A clip that shares a part or a side with others is rejected only if one of those
    is kept.
    """
    clips = corpus.query(
        f"""SELECT clip_id, duration_s FROM clips JOIN verdicts USING (clip_id) LEFT JOIN earlier USING (clip_id)
        WHERE verdicts.kept ORDER BY {", ".join(RANK)}, coalesce(earlier.kept, false) DESC, clip_id""",
        clips=corpus.read(
            "clips",
            columns=["clip_id", "duration_s", "width_px", "height_px", "dnsmos_overall", "bits_per_pixel"],
        ),
        verdicts=verdicts.select(["clip_id", "kept"]),
        earlier=corpus.read("decisions", columns=["clip_id", "kept"]),
    )
    names, pairs = corpus_pairs(corpus, config, cache=cache)
    return _groups(clips, names, pairs, config)


def corpus_pairs(corpus: Corpus, config: DuplicateConfig, *, cache: bool = True) -> tuple[np.ndarray, Pairs]:
    """Clip ids, sorted, and all pairs among them that agree (`curation.similar`); from `duplicates/` where nothing changed.
    With `cache` they are stored there."""
    import numpy as np

    version = corpus.versions()["clips"]
    settings = config.model_dump(exclude={"enabled", "kinds", "min_shared"})
    key = hashlib.sha256(json.dumps([_CODE_VERSION, version, settings], sort_keys=True).encode()).hexdigest()
    store = corpus.root / "duplicates" / "pairs.npz"
    if store.is_file():
        with np.load(store, allow_pickle=False) as known:
            if str(known["key"]) == key:
                return known["names"], Pairs(**{name: known[name] for name in Pairs.__dataclass_fields__})
    names, pairs = _found(corpus, config)
    if not cache:
        return names, pairs
    store.parent.mkdir(exist_ok=True)
    part = store.with_name(".pairs.npz")
    with part.open("wb") as out:
        np.savez(out, key=key, names=names, **vars(pairs))
    os.replace(part, store)
    return names, pairs


def _found(corpus: Corpus, config: DuplicateConfig) -> tuple[np.ndarray, Pairs]:
    import numpy as np

    ids = corpus.read("clips", columns=["clip_id", "start_s", "text_hash"])
    names = ids["clip_id"].to_numpy().astype(np.str_)
    order = np.argsort(names)
    video = video_prints(*_ragged(corpus, "video_hash", order), ids["start_s"].to_numpy()[order])
    sound = sound_prints(*_ragged(corpus, "sound_hash", order))
    text = ids["text_hash"].fill_null(0).to_numpy()[order]
    return names[order], find_pairs(video, sound, text, config)


def _ragged(corpus: Corpus, column: str, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists as values int64 [m] and starts int64 [n + 1], its rows in the given order."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = corpus.read("clips", columns=[column])[column].take(pa.array(order)).combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pc.list_flatten(lists).to_numpy(zero_copy_only=False), starts


def _groups(clips: pa.Table, names: np.ndarray, pairs: Pairs, config: DuplicateConfig) -> pa.Table:
    """The rows of `duplicates` for `clips`, best first, from the pairs among `names`."""
    import numpy as np
    import pyarrow as pa

    ranked = clips["clip_id"].to_numpy().astype(np.str_)
    # one value more for the clips that do not pass, whose rank is -1: there may be no other
    length = np.append(clips["duration_s"].to_numpy(), 1.0)
    rank = np.full(len(names), -1, np.int64)
    rank[np.searchsorted(names, ranked)] = np.arange(len(ranked))
    a, b = rank[pairs.a], rank[pairs.b]
    kinds, counts = _kinds(pairs, length[a], length[b], config)
    rows = np.flatnonzero((a >= 0) & (b >= 0) & counts)
    better, worse = np.minimum(a, b)[rows], np.maximum(a, b)[rows]
    kept_of, through = _keepers(len(ranked), better, worse, kinds[rows] == "copy")
    told = np.flatnonzero(
        (kept_of != np.arange(len(ranked))) | np.isin(np.arange(len(ranked)), kept_of[through >= 0])
    )
    via = np.where(through[told] >= 0, rows[np.maximum(through[told], 0)] if len(rows) else 0, -1)

    def of_pair(values: np.ndarray) -> pa.Array:
        padded = np.append(values, np.zeros(1, values.dtype))[via]
        return pa.array(padded, mask=(via < 0) | (np.isnan(padded) if padded.dtype.kind == "f" else False))

    return pa.table(
        {
            "clip_id": pa.array(ranked[told]),
            "kept_clip": pa.array(ranked[kept_of[told]]),
            "kind": pa.array(np.where(via >= 0, np.append(kinds, "")[via], "kept")),
            **{name: of_pair(getattr(pairs, name)) for name in ("picture", "sound", "shared_s", "mirrored")},
            "speed": of_pair(np.maximum(pairs.speed, 1 / pairs.speed)),
        }
    )


def _kinds(
    pairs: Pairs, a_s: np.ndarray, b_s: np.ndarray, config: DuplicateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The kind of every pair of clips of these lengths, and whether it counts by the configuration."""
    import numpy as np

    at_b = pairs.shared_s / pairs.speed
    whole = np.minimum(pairs.shared_s / a_s, at_b / b_s) >= WHOLE
    enough = np.maximum(pairs.shared_s / a_s, at_b / b_s) >= config.min_shared
    seen, heard = ~np.isnan(pairs.picture), ~np.isnan(pairs.sound)
    full = np.where(whole, "copy", "overlap")
    kinds = np.where(seen & heard, full, np.where(seen, "same-picture", "same-sound"))
    return kinds, enough & np.isin(kinds, config.kinds)


def _keepers(
    clips: int, better: np.ndarray, worse: np.ndarray, whole: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For clips 0 (best) to n - 1: the kept clip of each, and the pair by which it is a copy (-1: it is kept itself).

    Whole copies are joined (connected components) and represented by their best. Then, from the best on, a group is
    dropped if it shares something with a group that is kept.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(int(whole.sum()), bool), (better[whole], worse[whole])), shape=(clips, clips))
    label = connected_components(graph, directed=False)[1]
    best = np.full(label.max(initial=-1) + 1, clips)
    np.minimum.at(best, label, np.arange(clips))
    head = best[label]
    through = np.full(clips, -1)
    for side in (better, worse):
        through[side[whole]] = np.flatnonzero(whole)
    through[best] = -1
    kept_of = head.copy()
    lifted = np.sort(np.stack([head[better], head[worse]]), axis=0)
    edges = np.flatnonzero(lifted[0] != lifted[1])
    for edge in edges[np.lexsort((lifted[0][edges], lifted[1][edges]))].tolist():
        upper, lower = int(lifted[0, edge]), int(lifted[1, edge])
        if kept_of[upper] == upper and kept_of[lower] == lower:
            kept_of[lower], through[lower] = upper, edge
    return kept_of[head], through
