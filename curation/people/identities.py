"""Who is who across sources: speakers whose voices or faces are surely, or perhaps, one person's.

In: the clips table (a voice embedding per speaker, a face vector per clip) and two cosines for each. Out: for every speaker
a group (surely the same person: connected components above the upper cosine) and the pairs of groups that come nearer than
the lower one. Comparing is exact and done once: vectors and pairs stay in the corpus, and only speakers that are new, or
measured anew, are compared again, whatever the policy.

Comparisons grow with the square of the persons, and with them the pairs that come near by luck: where everybody is near
somebody of either side, nobody could be put on one. So of more persons the nearest pairs count alone (`most_near`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uniavgen.curation.config import SplitConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    import numpy as np

SPEAKER = "coalesce(nullif(speaker, ''), 'source:' || source_id)"
"""SQL of a clip's speaker; clips without speech stand together by source."""

KINDS = ("voice", "face")
"""What is compared."""

LEAST_NEAR = 1000
"""Pairs of persons that may be near one another in a corpus of any size (our choice: all pairs of 45)."""

NEAR_EACH = 0.5
"""Pairs a person beyond that (our choice: each is near one other on average, and few are near both sides)."""

_HELD_EACH = 64  # pairs a speaker that are held at most while all are compared, and kept
_BLOCK, _TILE = (
    2048,
    16384,
)  # speakers compared at a time, the later with the earlier: 128 MiB of similarities


@dataclass(frozen=True)
class Likeness:
    """What is known of the likeness of n speakers, by their place in `speakers`.

    `same` and `near`: int64 [m, 2], pairs (i, j) that are surely, or perhaps (but not surely), one person; i < j. `cut`: by
    what is compared the cosine from which pairs are near, where so many come nearer than the configured one that it tells
    nothing.
    """

    speakers: tuple[str, ...]
    same: np.ndarray
    near: np.ndarray
    cut: dict[str, float]


def likeness(corpus: Corpus, config: SplitConfig, *, cache: bool = True) -> Likeness:
    """Compare all speakers of the corpus, those already compared with one another excepted. With `cache` it stores the
    pairs in `identities/` of the corpus. Raises UserError where vectors come from two models."""
    import numpy as np

    speakers = _speakers(corpus)
    store = corpus.root / "identities"
    cosines = {"voice": (config.same_voice, config.near_voice), "face": (config.same_face, config.near_face)}
    key = json.dumps({name: cosines[name] for name in sorted(config.people_by)})
    known = _load(store, key)
    fresh = [name for name, digest in speakers.items() if known.digests.get(name) != digest]
    stays = [name for name in known.digests if name in speakers and known.digests[name] == speakers[name]]
    if not fresh and len(stays) == len(known.digests):
        return _told(known)
    _require_one_face_model(corpus)
    order = [*stays, *fresh]
    place = {name: i for i, name in enumerate(order)}
    staying = set(stays)
    moved = np.array([place[name] if name in staying else -1 for name in known.digests], np.int64)
    voices = _merged(known.voices, moved, _vectors(corpus, "voice", fresh, place))
    faces = _merged(known.faces, moved, _vectors(corpus, "face", fresh, place))
    staying_pairs = _renamed(known.same, moved)
    found_same = [staying_pairs[(staying_pairs >= 0).all(axis=1)]]
    found_near = [known.near.moved(moved)]
    vectors = {"voice": voices, "face": faces}
    for name in config.people_by:
        same, near = cosines[name]
        most = max(LEAST_NEAR, _HELD_EACH * len(order))
        pairs, likely = pairs_above(
            vectors[name], min(same, near), first_new=len(stays), most=most, always=same
        )
        found_same.append(pairs[likely >= same])
        found_near.append(
            Near(
                pairs[likely < same], likely[likely < same], np.full((likely < same).sum(), KINDS.index(name))
            )
        )
    result = _Known(
        {n: speakers[n] for n in order}, voices, faces, _unique(found_same), Near.joined(found_near)
    )
    if cache:
        _save(store, key, result)
    return _told(result)


def _told(known: _Known) -> Likeness:
    labels = components(len(known.digests), [known.same])
    near, cut = nearest(labels, known.near)
    return Likeness(tuple(known.digests), known.same, near, cut)


def most_near(persons: int) -> int:
    """Pairs of persons that may be near one another, by voice and by face each."""
    return max(LEAST_NEAR, int(NEAR_EACH * persons))


def nearest(labels: np.ndarray, near: Near) -> tuple[np.ndarray, dict[str, float]]:
    """Of pairs of speakers whose persons (`labels` int64 [n], by speaker) differ, those of the `most_near` nearest pairs of
    persons, by voice and by face each: int64 [m, 2]; and the cosine from which pairs are taken, where some are not."""
    import numpy as np

    persons = int(labels.max(initial=-1)) + 1
    most, kept, cut = most_near(persons), [np.zeros((0, 2), np.int64)], {}
    one, other = np.sort(labels[near.pairs], axis=1).T
    for number, name in enumerate(KINDS):
        rows = np.flatnonzero((near.by == number) & (one != other))
        names, place = np.unique(one[rows] * persons + other[rows], return_inverse=True)
        best = np.full(len(names), -np.inf, np.float32)
        np.maximum.at(best, place, near.cosine[rows])
        if len(best) > most:
            cut[name] = float(np.partition(best, -most)[-most])
            rows = rows[best[place] >= cut[name]]
        kept.append(near.pairs[rows])
    return _unique(kept), cut


@dataclass(frozen=True)
class Vectors:
    """Rows of unit vectors: `of` int64 [n] names the speaker's place of each row of `matrix` float32 [n, d]."""

    of: np.ndarray
    matrix: np.ndarray


@dataclass(frozen=True)
class Near:
    """Pairs of speakers that come near: `pairs` int64 [m, 2], `cosine` float32 [m], `by` int64 [m], the place in `KINDS`."""

    pairs: np.ndarray
    cosine: np.ndarray
    by: np.ndarray

    @staticmethod
    def joined(parts: Sequence[Near]) -> Near:
        import numpy as np

        return Near(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("pairs", "cosine", "by"))
        )

    def moved(self, places: np.ndarray) -> Near:
        """With speakers at new places; pairs of one that has none (-1) go."""
        renamed = _renamed(self.pairs, places)
        stays = (renamed >= 0).all(axis=1)
        return Near(renamed[stays], self.cosine[stays], self.by[stays])


@dataclass(frozen=True)
class _Known:
    digests: dict[str, str]
    voices: Vectors
    faces: Vectors
    same: np.ndarray
    near: Near


def pairs_above(
    vectors: Vectors, cosine: float, first_new: int = 0, most: float = math.inf, always: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of speakers with a cosine of at least `cosine`: int64 [m, 2] with i < j, and the cosines float32 [m].

    Only pairs whose later speaker is at place `first_new` or beyond are looked at; a speaker is not paired with itself. Of
    more than twice `most` pairs the nearest `most` are held, and all of at least `always`: memory stays bounded.
    """
    import numpy as np

    order = np.argsort(vectors.of, kind="stable")
    of, matrix = vectors.of[order], vectors.matrix[order]
    begin = int(np.searchsorted(of, first_new))
    rows, columns, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for start in range(begin, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK]
        for first in range(0, start + len(block), _TILE):
            cosines = block @ matrix[first : min(first + _TILE, start + len(block))].T
            i, j = np.divmod(
                np.flatnonzero(cosines >= cosine), cosines.shape[1]
            )  # far faster than nonzero in two dimensions
            later, earlier = of[start + i], of[first + j]
            wanted = earlier < later
            rows.append(earlier[wanted])
            columns.append(later[wanted])
            values.append(cosines[i, j][wanted])
        if sum(map(len, values)) > 2 * most:
            every = np.concatenate(values)
            cosine = max(cosine, min(always, float(np.partition(every, -int(most))[-int(most)])))
            near = every >= cosine
            rows, columns, values = (
                [np.concatenate(rows)[near]],
                [np.concatenate(columns)[near]],
                [every[near]],
            )
    return np.stack([np.concatenate(rows), np.concatenate(columns)], axis=1), np.concatenate(values)


def components(count: int, pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Label int64 [count] of the connected component of each of `count` nodes, joined by int64 [m, 2] pairs."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.concatenate([np.zeros((0, 2), np.int64), *pairs]).T
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def unit_vectors(of: Sequence[int], vectors: Sequence[np.ndarray | None], what: str) -> Vectors:
    """Unit rows of the vectors that are usable (finite, not zero, not None). Raises UserError for two lengths."""
    import numpy as np

    usable = [
        (i, v)
        for i, v in zip(of, vectors, strict=True)
        if v is not None and len(v) and 0 < np.linalg.norm(v) < np.inf
    ]
    if len({len(vector) for _, vector in usable}) > 1:
        raise UserError(
            f"{what} vectors in this corpus come from two models",
            hint="ingest its sources again with one of them",
        )
    if not usable:
        return Vectors(np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
    matrix = np.stack([vector for _, vector in usable]).astype(np.float32)
    return Vectors(
        np.array([i for i, _ in usable], np.int64), matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    )


def _speakers(corpus: Corpus) -> dict[str, str]:
    """Every speaker and the digest of the settings that measured its source: another digest, another voice."""
    found = corpus.query(
        f"""SELECT {SPEAKER} AS speaker, coalesce(max(sources.digest), '') AS digest
        FROM clips LEFT JOIN sources USING (source_id) GROUP BY 1 ORDER BY 1"""
    )
    return dict(zip(found["speaker"].to_pylist(), found["digest"].to_pylist(), strict=True))


def _require_one_face_model(corpus: Corpus) -> None:
    """Face vectors of two models may be of one length, and then tell nothing of one another."""
    found = corpus.query(
        "SELECT DISTINCT versions['face_vectors'] AS model FROM clips WHERE len(face) > 0 ORDER BY 1"
    )
    models = [name for name in found["model"].to_pylist() if name]
    if len(models) > 1:
        raise UserError(
            f"face vectors in this corpus come from two models: {', '.join(models)}",
            where=corpus.root,
            hint="ingest its sources again with one ingest.faces.vectors",
            kind="two-models",
        )


def _vectors(corpus: Corpus, column: str, wanted: list[str], place: dict[str, int]) -> Vectors:
    """Of each wanted speaker, the vector of its first clip that has one (ingest gives a speaker one voice per source)."""
    import pyarrow as pa

    found = corpus.query(
        f"""SELECT {SPEAKER} AS who, arg_min({column}, clip_id) AS vector FROM clips
        WHERE len({column}) > 0 AND {SPEAKER} IN (SELECT who FROM wanted) GROUP BY 1 ORDER BY 1""",
        wanted=pa.table({"who": pa.array(wanted, pa.string())}),
    )
    rows = [row.values.to_numpy() for row in found["vector"]]
    return unit_vectors([place[name] for name in found["who"].to_pylist()], rows, column)


def _merged(known: Vectors, moved: np.ndarray, fresh: Vectors) -> Vectors:
    """Known rows at their speakers' new places, and the fresh ones."""
    import numpy as np

    of = moved[known.of] if len(known.of) else known.of
    stays = of >= 0
    parts = [(of[stays], known.matrix[stays]), (fresh.of, fresh.matrix)]
    parts = [(places, matrix) for places, matrix in parts if len(places)]
    if len({matrix.shape[1] for _, matrix in parts}) > 1:
        raise UserError(
            "vectors in this corpus come from two models", hint="ingest its sources again with one of them"
        )
    if not parts:
        return Vectors(np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
    return Vectors(
        np.concatenate([places for places, _ in parts]), np.concatenate([matrix for _, matrix in parts])
    )


def _renamed(pairs: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Pairs with speakers at their new places; -1 is none."""
    import numpy as np

    return np.sort(moved[pairs], axis=1) if len(pairs) else pairs


def _unique(parts: list[np.ndarray]) -> np.ndarray:
    import numpy as np

    return np.unique(np.concatenate(parts), axis=0)


def _load(store: Path, key: str) -> _Known:
    """What was found before under the same cosines; nothing where there is nothing, or it cannot be read."""
    import numpy as np
    import pyarrow.parquet as pq

    empty = Vectors(np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
    none = np.zeros((0, 2), np.int64)
    try:
        table = pq.read_table(store / "speakers.parquet")
        if (table.schema.metadata or {}).get(b"cosines") != key.encode():
            raise ValueError("made under other cosines")
        with np.load(store / f"likeness-{table.schema.metadata[b'part'].decode()}.npz") as saved:
            voices = Vectors(saved["voice_of"], saved["voice"])
            faces = Vectors(saved["face_of"], saved["face"])
            digests = dict(zip(table["speaker"].to_pylist(), table["digest"].to_pylist(), strict=True))
            near = Near(saved["near"], saved["near_cosine"], saved["near_by"])
            return _Known(digests, voices, faces, saved["same"], near)
    except (OSError, ValueError, KeyError):
        return _Known({}, empty, empty, none, Near(none, np.zeros(0, np.float32), np.zeros(0, np.int64)))


def _save(store: Path, key: str, known: _Known) -> None:
    """Arrays first, under a name of their own; the table of speakers names them and is the proof."""
    import hashlib

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    store.mkdir(exist_ok=True)
    part = hashlib.sha256((key + json.dumps(known.digests)).encode()).hexdigest()[:16]
    arrays = store / f"likeness-{part}.npz"
    with open(arrays.with_suffix(".part"), "wb") as file:
        np.savez(
            file,
            voice_of=known.voices.of,
            voice=known.voices.matrix,
            face_of=known.faces.of,
            face=known.faces.matrix,
            same=known.same,
            near=known.near.pairs,
            near_cosine=known.near.cosine,
            near_by=known.near.by,
        )
    os.replace(arrays.with_suffix(".part"), arrays)
    table = pa.table({"speaker": list(known.digests), "digest": list(known.digests.values())})
    table = table.replace_schema_metadata({"cosines": key, "part": part})
    pq.write_table(table, store / ".speakers.part")
    os.replace(store / ".speakers.part", store / "speakers.parquet")
    for other in store.glob("likeness-*.npz"):
        if other != arrays:
            other.unlink()
