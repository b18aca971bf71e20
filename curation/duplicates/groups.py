"""Reject duplicates: group clips that show or say the same, and keep the best of each group.

Pairs of similar clips depend on the clips and the configuration only, so they are computed once per version
of the clips table and stored in `duplicates/` of the corpus. Which clip of a group is kept depends on the
verdicts too.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from uniavgen.curation.config import DuplicateConfig
from uniavgen.curation.duplicates.similar_pairs import Pairs, audio_prints, find_pairs, video_prints
from uniavgen.shards.corpus.tables import Corpus

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

DUPLICATE = "duplicate"
"""Reason of a clip that passes the policy and has a better duplicate."""

WHOLE_SHARE = 0.9
"""Shared part of the longer clip from which a pair is a whole `copy`, below it an `overlap`. Heuristic: two
runs cut slightly different spans."""

RANK = (
    "round(log2(greatest(1, width_px * height_px)) * 2) DESC NULLS LAST",
    "round(duration_s) DESC NULLS LAST",
    "round(dnsmos_overall, 1) DESC NULLS LAST",
    "round(log2(greatest(0.001, bits_per_pixel))) DESC NULLS LAST",
)
"""SQL order by which the best duplicate is kept: pixels (steps of a factor of 1.4), duration (seconds), audio
quality (tenths of DNSMOS), bits per pixel (doublings); then the clip kept before, then the lower clip_id.
Heuristic: the steps keep measurement noise from deciding, so a kept clip is replaced only by a clearly better
one."""

_CODE_VERSION = "1"


def reject_duplicates(
    corpus: Corpus, verdicts: pa.Table, config: DuplicateConfig, *, cache: bool = True
) -> pa.Table:
    """Verdicts (`judge`) in which every clip with a better duplicate among the passing clips is rejected."""
    if not config.enabled:
        return verdicts
    return corpus.query(
        f"""SELECT clip_id, v.kept AND d.clip_id IS NULL AS kept,
        CASE WHEN d.clip_id IS NULL THEN reason ELSE '{DUPLICATE}' END AS reason,
        CASE WHEN d.clip_id IS NULL THEN failed_rules ELSE ['{DUPLICATE}'] END AS failed_rules
        FROM verdicts v
        LEFT JOIN (SELECT clip_id FROM duplicates WHERE clip_id <> kept_clip) d USING (clip_id)""",
        verdicts=verdicts,
        duplicates=find_duplicates(corpus, verdicts, config, cache=cache),
    )


def find_duplicates(
    corpus: Corpus, verdicts: pa.Table, config: DuplicateConfig, *, cache: bool = True
) -> pa.Table:
    """Every passing clip that has a passing duplicate, one row each.

    `clip_id`; `kept_clip`: the best of the group; `kind`: `kept`, `copy`, `overlap`, `same-sound` or
    `same-picture`; `picture`, `sound`: share of differing bits against another clip of the group, null where
    they do not match; `shared_s`; `mirrored`; `speed`: how much faster the faster clip runs.

    Clips joined by whole copies form one group. A clip that shares only a part, or only picture or sound, is
    rejected only if the other clip is kept.
    """
    clips = corpus.query(
        f"""SELECT clip_id, duration_s FROM clips
        JOIN verdicts USING (clip_id) LEFT JOIN earlier USING (clip_id)
        WHERE verdicts.kept ORDER BY {", ".join(RANK)}, coalesce(earlier.kept, false) DESC, clip_id""",
        clips=corpus.read(
            "clips",
            columns=["clip_id", "duration_s", "width_px", "height_px", "dnsmos_overall", "bits_per_pixel"],
        ),
        verdicts=verdicts.select(["clip_id", "kept"]),
        earlier=corpus.read("decisions", columns=["clip_id", "kept"]),
    )
    clip_ids, pairs = load_or_find_pairs(corpus, config, cache=cache)
    return _group(clips, clip_ids, pairs, config)


def load_or_find_pairs(
    corpus: Corpus, config: DuplicateConfig, *, cache: bool = True
) -> tuple[np.ndarray, Pairs]:
    """Sorted clip ids, and all similar pairs among them by index. Stored pairs are reused if nothing changed.

    `cache`: store new pairs in the corpus.
    """
    import numpy as np

    version = corpus.versions()["clips"]
    settings = config.model_dump(exclude={"enabled", "kinds", "min_shared"})
    key = hashlib.sha256(json.dumps([_CODE_VERSION, version, settings], sort_keys=True).encode()).hexdigest()
    path = corpus.root / "duplicates" / "pairs.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                columns = {name: stored[name] for name in Pairs.__dataclass_fields__}
                return stored["names"], Pairs(**columns)
    clip_ids, pairs = _find_corpus_pairs(corpus, config)
    if not cache:
        return clip_ids, pairs
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(".pairs.npz")
    with part.open("wb") as out:
        np.savez(out, key=key, names=clip_ids, **vars(pairs))
    os.replace(part, path)
    return clip_ids, pairs


def _find_corpus_pairs(corpus: Corpus, config: DuplicateConfig) -> tuple[np.ndarray, Pairs]:
    import numpy as np

    clips = corpus.read("clips", columns=["clip_id", "start_s", "text_hash"])
    clip_ids = clips["clip_id"].to_numpy().astype(np.str_)
    order = np.argsort(clip_ids)
    video = video_prints(*_ragged_column(corpus, "video_hash", order), clips["start_s"].to_numpy()[order])
    audio = audio_prints(*_ragged_column(corpus, "sound_hash", order))
    text = clips["text_hash"].fill_null(0).to_numpy()[order]
    return clip_ids[order], find_pairs(video, audio, text, config)


def _ragged_column(corpus: Corpus, column: str, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A list column as values int64 [m] and starts int64 [n + 1], rows in this order."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = corpus.read("clips", columns=[column])[column].take(pa.array(order)).combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pc.list_flatten(lists).to_numpy(zero_copy_only=False), starts


def _group(clips: pa.Table, clip_ids: np.ndarray, pairs: Pairs, config: DuplicateConfig) -> pa.Table:
    """The rows of `find_duplicates` for `clips`, sorted best first, from the pairs among `clip_ids`."""
    import numpy as np
    import pyarrow as pa

    ranked = clips["clip_id"].to_numpy().astype(np.str_)
    # the last value is for clips that do not pass: their rank is -1, and no clip may pass
    length = np.append(clips["duration_s"].to_numpy(), 1.0)
    rank = np.full(len(clip_ids), -1, np.int64)
    rank[np.searchsorted(clip_ids, ranked)] = np.arange(len(ranked))
    a, b = rank[pairs.a], rank[pairs.b]
    kinds, counts = _pair_kinds(pairs, length[a], length[b], config)
    rows = np.flatnonzero((a >= 0) & (b >= 0) & counts)
    better, worse = np.minimum(a, b)[rows], np.maximum(a, b)[rows]
    kept_of, via_edge = _choose_kept(len(ranked), better, worse, kinds[rows] == "copy")
    is_best = np.isin(np.arange(len(ranked)), kept_of[via_edge >= 0])
    listed = np.flatnonzero((kept_of != np.arange(len(ranked))) | is_best)
    via_pair = np.where(via_edge[listed] >= 0, rows[np.maximum(via_edge[listed], 0)] if len(rows) else 0, -1)

    def of_pair(values: np.ndarray) -> pa.Array:
        padded = np.append(values, np.zeros(1, values.dtype))[via_pair]
        return pa.array(
            padded, mask=(via_pair < 0) | (np.isnan(padded) if padded.dtype.kind == "f" else False)
        )

    return pa.table(
        {
            "clip_id": pa.array(ranked[listed]),
            "kept_clip": pa.array(ranked[kept_of[listed]]),
            "kind": pa.array(np.where(via_pair >= 0, np.append(kinds, "")[via_pair], "kept")),
            **{name: of_pair(getattr(pairs, name)) for name in ("picture", "sound", "shared_s", "mirrored")},
            "speed": of_pair(np.maximum(pairs.speed, 1 / pairs.speed)),
        }
    )


def _pair_kinds(
    pairs: Pairs, a_s: np.ndarray, b_s: np.ndarray, config: DuplicateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Kind of every pair of clips of these durations, and whether the configuration counts it."""
    import numpy as np

    shared_of_b = pairs.shared_s / pairs.speed
    is_whole = np.minimum(pairs.shared_s / a_s, shared_of_b / b_s) >= WHOLE_SHARE
    shares_enough = np.maximum(pairs.shared_s / a_s, shared_of_b / b_s) >= config.min_shared
    same_picture, same_sound = ~np.isnan(pairs.picture), ~np.isnan(pairs.sound)
    both = np.where(is_whole, "copy", "overlap")
    kinds = np.where(same_picture & same_sound, both, np.where(same_picture, "same-picture", "same-sound"))
    return kinds, shares_enough & np.isin(kinds, config.kinds)


def _choose_kept(
    clips: int, better: np.ndarray, worse: np.ndarray, whole: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For clips 0 (best) to n - 1: the kept clip of each, and the edge that makes it a duplicate (-1: it is
    kept).

    Edges join `better` and `worse`; `whole` marks whole copies, whose connected components are represented by
    their best clip. Then, best first, a component is rejected if it shares something with a component that is
    kept.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(int(whole.sum()), bool), (better[whole], worse[whole])), shape=(clips, clips))
    label = connected_components(graph, directed=False)[1]
    best = np.full(label.max(initial=-1) + 1, clips)
    np.minimum.at(best, label, np.arange(clips))
    head = best[label]
    via_edge = np.full(clips, -1)
    for side in (better, worse):
        via_edge[side[whole]] = np.flatnonzero(whole)
    via_edge[best] = -1
    kept_of = head.copy()
    between = np.sort(np.stack([head[better], head[worse]]), axis=0)
    edges = np.flatnonzero(between[0] != between[1])
    for edge in edges[np.lexsort((between[0][edges], between[1][edges]))].tolist():
        upper, lower = int(between[0, edge]), int(between[1, edge])
        if kept_of[upper] == upper and kept_of[lower] == lower:
            kept_of[lower], via_edge[lower] = upper, edge
    return kept_of[head], via_edge
