"""Compare the speakers of a corpus: which are the same person, and which may be.

Every speaker has a speaker embedding (`voice`) and face embeddings (`face`). Two cosine thresholds for each
divide pairs into `same` (one person), `near` (may be one person) and unrelated. Comparison is exact.
Embeddings and pairs are stored in `identities/` of the corpus, so only new or re-measured speakers are
compared in later runs.

The number of chance matches grows with the square of the number of persons. In a large corpus most persons
would be near somebody in train and somebody in val, so only the nearest pairs count (`max_near_pairs`): the
similarity threshold is raised to cap chance matches.
"""

from __future__ import annotations

import hashlib
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
"""SQL of a clip's speaker. Clips without speech are grouped by source."""

KINDS = ("voice", "face")
"""Embeddings that are compared; `NearPairs.kind` is an index into this."""

MIN_NEAR_PAIRS = 300
"""Near pairs allowed in a corpus of any size: all pairs of 25 persons. Heuristic."""

NEAR_PAIRS_PER_PERSON = 0.1
"""Near pairs allowed beyond that. Heuristic: a corpus that grows in five steps to 20,000 persons then loses
0.3 % of its hours to persons near both sides; 0.5 pairs lose 2.8 % (`tests/benchmarks/curation/splits.py`).
"""

_STORED_PAIRS_PER_SPEAKER = 64
_BLOCK, _TILE = 2048, 16384  # speakers compared at a time: 128 MiB of similarities


@dataclass(frozen=True)
class SpeakerPairs:
    """Pairs among `speakers` by index: int64 [m, 2], (i, j) with i < j.

    `same`: one person. `near`: may be one person. `crowding` int64 [n]: near pairs of each speaker, also
    those that `near` leaves out. `raised`: by kind, the cosine from which pairs count as near where the
    configured one was raised to cap chance matches.
    """

    speakers: tuple[str, ...]
    same: np.ndarray
    near: np.ndarray
    crowding: np.ndarray
    raised: dict[str, float]


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors: row i of `matrix` float32 [n, d] belongs to speaker `speaker[i]` int64 [n]."""

    speaker: np.ndarray
    matrix: np.ndarray


@dataclass(frozen=True)
class NearPairs:
    """Near pairs of speakers: `pairs` int64 [m, 2], `cosine` float32 [m], `kind` int64 [m] (index into
    `KINDS`).
    """

    pairs: np.ndarray
    cosine: np.ndarray
    kind: np.ndarray

    @staticmethod
    def concatenate(parts: Sequence[NearPairs]) -> NearPairs:
        import numpy as np

        names = ("pairs", "cosine", "kind")
        return NearPairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def reindex(self, new_index: np.ndarray) -> NearPairs:
        """With speakers at their new indices; pairs with a removed speaker (-1) are dropped."""
        pairs = _reindex(self.pairs, new_index)
        stays = (pairs >= 0).all(axis=1)
        return NearPairs(pairs[stays], self.cosine[stays], self.kind[stays])


@dataclass(frozen=True)
class _Comparison:
    """The stored state: every speaker with its source's digest, the embeddings, and all pairs."""

    digests: dict[str, str]
    voices: Embeddings
    faces: Embeddings
    same: np.ndarray
    near: NearPairs


def compare_speakers(corpus: Corpus, config: SplitConfig, *, cache: bool = True) -> SpeakerPairs:
    """Same and near pairs among all speakers of the corpus. Stored pairs are reused; `cache`: store new ones.

    Raises UserError if embeddings come from two models.
    """
    import numpy as np

    digests = _speaker_digests(corpus)
    folder = corpus.root / "identities"
    cosines = {"voice": (config.same_voice, config.near_voice), "face": (config.same_face, config.near_face)}
    key = json.dumps({name: cosines[name] for name in sorted(config.people_by)})
    stored = _load(folder, key)
    new = [name for name, digest in digests.items() if stored.digests.get(name) != digest]
    unchanged = [name for name, digest in stored.digests.items() if digests.get(name) == digest]
    if not new and len(unchanged) == len(stored.digests):
        return _speaker_pairs(stored)
    _require_one_face_model(corpus)
    speakers = [*unchanged, *new]
    index = {name: i for i, name in enumerate(speakers)}
    still_valid = set(unchanged)
    new_index = np.array([index[name] if name in still_valid else -1 for name in stored.digests], np.int64)
    embeddings = {
        "voice": _merge(stored.voices, new_index, _read_embeddings(corpus, "voice", new, index)),
        "face": _merge(stored.faces, new_index, _read_embeddings(corpus, "face", new, index)),
    }
    same_reindexed = _reindex(stored.same, new_index)
    same_parts = [same_reindexed[(same_reindexed >= 0).all(axis=1)]]
    near_parts = [stored.near.reindex(new_index)]
    for kind in config.people_by:
        same, near = cosines[kind]
        pairs, cosine = find_pairs_above(
            embeddings[kind],
            min(same, near),
            first_new=len(unchanged),
            max_pairs=max(MIN_NEAR_PAIRS, _STORED_PAIRS_PER_SPEAKER * len(speakers)),
            always=same,
        )
        is_near = cosine < same
        same_parts.append(pairs[~is_near])
        near_parts.append(
            NearPairs(pairs[is_near], cosine[is_near], np.full(is_near.sum(), KINDS.index(kind)))
        )
    comparison = _Comparison(
        {name: digests[name] for name in speakers},
        embeddings["voice"],
        embeddings["face"],
        _unique_pairs(same_parts),
        NearPairs.concatenate(near_parts),
    )
    if cache:
        _save(folder, key, comparison)
    return _speaker_pairs(comparison)


def stored_persons(corpus: Corpus) -> dict[str, str]:
    """The person of every speaker by the stored comparison, named after its first speaker; empty if none is
    stored.

    `curate.split.join_sources` is not taken into account.
    """
    stored = _load(corpus.root / "identities", None)
    speakers = list(stored.digests)
    labels = connected_components(len(speakers), [stored.same]).tolist()
    first: dict[int, str] = {}
    for speaker, label in sorted(zip(speakers, labels, strict=True)):
        first.setdefault(label, speaker)
    return {speaker: first[label] for speaker, label in zip(speakers, labels, strict=True)}


def _speaker_pairs(comparison: _Comparison) -> SpeakerPairs:
    import numpy as np

    persons = connected_components(len(comparison.digests), [comparison.same])
    near, raised = limit_near_pairs(persons, comparison.near)
    crowding = np.bincount(comparison.near.pairs.ravel(), minlength=len(comparison.digests))
    return SpeakerPairs(tuple(comparison.digests), comparison.same, near, crowding, raised)


def max_near_pairs(persons: int) -> int:
    """Near pairs of persons that count, per kind."""
    return max(MIN_NEAR_PAIRS, int(NEAR_PAIRS_PER_PERSON * persons))


def limit_near_pairs(persons: np.ndarray, near: NearPairs) -> tuple[np.ndarray, dict[str, float]]:
    """The nearest pairs of different persons, at most `max_near_pairs` of each kind.

    `persons` int64 [n] labels the speakers. Returns pairs of speakers int64 [m, 2], and by kind the raised
    cosine where pairs were left out.
    """
    import numpy as np

    count = int(persons.max(initial=-1)) + 1
    limit, kept, raised = max_near_pairs(count), [np.zeros((0, 2), np.int64)], {}
    one, other = np.sort(persons[near.pairs], axis=1).T
    for number, kind in enumerate(KINDS):
        rows = np.flatnonzero((near.kind == number) & (one != other))
        person_pairs, pair_of_row = np.unique(one[rows] * count + other[rows], return_inverse=True)
        best = np.full(len(person_pairs), -np.inf, np.float32)
        np.maximum.at(best, pair_of_row, near.cosine[rows])
        if len(best) > limit:
            raised[kind] = float(np.partition(best, -limit)[-limit])
            rows = rows[best[pair_of_row] >= raised[kind]]
        kept.append(near.pairs[rows])
    return _unique_pairs(kept), raised


def find_pairs_above(
    embeddings: Embeddings,
    cosine: float,
    first_new: int = 0,
    max_pairs: float = math.inf,
    always: float = math.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of speakers with a cosine of at least `cosine`: int64 [m, 2] with i < j, and the cosines float32
    [m].

    Only pairs whose later speaker has an index of at least `first_new` are compared. Once more than twice
    `max_pairs` were found, only the nearest `max_pairs` and all of at least `always` are held: memory stays
    bounded.
    """
    import numpy as np

    order = np.argsort(embeddings.speaker, kind="stable")
    speaker, matrix = embeddings.speaker[order], embeddings.matrix[order]
    begin = int(np.searchsorted(speaker, first_new))
    rows, columns, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for start in range(begin, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK]
        for first in range(0, start + len(block), _TILE):
            cosines = block @ matrix[first : min(first + _TILE, start + len(block))].T
            # nonzero in one dimension is many times as fast as in two
            i, j = np.divmod(np.flatnonzero(cosines >= cosine), cosines.shape[1])
            later, earlier = speaker[start + i], speaker[first + j]
            wanted = earlier < later
            rows.append(earlier[wanted])
            columns.append(later[wanted])
            values.append(cosines[i, j][wanted])
        if sum(map(len, values)) > 2 * max_pairs:
            all_values = np.concatenate(values)
            limit = int(max_pairs)
            cosine = max(cosine, min(always, float(np.partition(all_values, -limit)[-limit])))
            near = all_values >= cosine
            rows, columns, values = (
                [np.concatenate(rows)[near]],
                [np.concatenate(columns)[near]],
                [all_values[near]],
            )
    return np.stack([np.concatenate(rows), np.concatenate(columns)], axis=1), np.concatenate(values)


def connected_components(count: int, pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Component label int64 [count] of each of `count` nodes, joined by int64 [m, 2] pairs."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components as scipy_components

    rows, columns = np.concatenate([np.zeros((0, 2), np.int64), *pairs]).T
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    return np.asarray(scipy_components(graph, directed=False)[1], np.int64)


def unit_embeddings(speakers: Sequence[int], vectors: Sequence[np.ndarray | None], column: str) -> Embeddings:
    """The usable vectors (finite, not zero, not None) with unit length.

    Raises UserError if their lengths differ.
    """
    import numpy as np

    usable = [
        (speaker, vector)
        for speaker, vector in zip(speakers, vectors, strict=True)
        if vector is not None and len(vector) and 0 < np.linalg.norm(vector) < np.inf
    ]
    if len({len(vector) for _, vector in usable}) > 1:
        raise _two_models(f"{column} embeddings in this corpus come from two models")
    if not usable:
        return _no_embeddings()
    matrix = np.stack([vector for _, vector in usable]).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return Embeddings(np.array([speaker for speaker, _ in usable], np.int64), matrix)


def _no_embeddings() -> Embeddings:
    import numpy as np

    return Embeddings(np.zeros(0, np.int64), np.zeros((0, 0), np.float32))


def _two_models(what: str) -> UserError:
    return UserError(what, hint="ingest its sources again with one of them")


def _speaker_digests(corpus: Corpus) -> dict[str, str]:
    """Every speaker with its source's digest. A changed digest means a re-measured embedding."""
    table = corpus.query(
        f"""SELECT {SPEAKER} AS speaker, coalesce(max(sources.digest), '') AS digest
        FROM clips LEFT JOIN sources USING (source_id) GROUP BY 1 ORDER BY 1"""
    )
    return dict(zip(table["speaker"].to_pylist(), table["digest"].to_pylist(), strict=True))


def _require_one_face_model(corpus: Corpus) -> None:
    """Raise UserError for face embeddings of two models: they can have one length and are still not
    comparable.
    """
    table = corpus.query(
        "SELECT DISTINCT versions['face_vectors'] AS model FROM clips WHERE len(face) > 0 ORDER BY 1"
    )
    models = [name for name in table["model"].to_pylist() if name]
    if len(models) > 1:
        raise UserError(
            f"face embeddings in this corpus come from two models: {', '.join(models)}",
            where=corpus.root,
            hint="ingest its sources again with one ingest.faces.vectors",
            kind="two-models",
        )


def _read_embeddings(corpus: Corpus, column: str, speakers: list[str], index: dict[str, int]) -> Embeddings:
    """Per speaker the embedding of its first clip that has one (ingest stores one voice per speaker and
    source).
    """
    import pyarrow as pa

    table = corpus.query(
        f"""SELECT {SPEAKER} AS speaker, arg_min({column}, clip_id) AS vector FROM clips
        WHERE len({column}) > 0 AND {SPEAKER} IN (SELECT speaker FROM wanted) GROUP BY 1 ORDER BY 1""",
        wanted=pa.table({"speaker": pa.array(speakers, pa.string())}),
    )
    vectors = [row.values.to_numpy() for row in table["vector"]]
    return unit_embeddings([index[name] for name in table["speaker"].to_pylist()], vectors, column)


def _merge(stored: Embeddings, new_index: np.ndarray, new: Embeddings) -> Embeddings:
    """Stored rows at their speakers' new indices (-1: dropped), then the new rows."""
    import numpy as np

    speaker = new_index[stored.speaker] if len(stored.speaker) else stored.speaker
    stays = speaker >= 0
    candidates = [(speaker[stays], stored.matrix[stays]), (new.speaker, new.matrix)]
    parts = [part for part in candidates if len(part[0])]
    if len({matrix.shape[1] for _, matrix in parts}) > 1:
        raise _two_models("embeddings in this corpus come from two models")
    if not parts:
        return _no_embeddings()
    return Embeddings(
        np.concatenate([speakers for speakers, _ in parts]), np.concatenate([matrix for _, matrix in parts])
    )


def _reindex(pairs: np.ndarray, new_index: np.ndarray) -> np.ndarray:
    """Pairs with speakers at their new indices; -1 for a removed speaker."""
    import numpy as np

    return np.sort(new_index[pairs], axis=1) if len(pairs) else pairs


def _unique_pairs(parts: list[np.ndarray]) -> np.ndarray:
    import numpy as np

    return np.unique(np.concatenate(parts), axis=0)


def _load(folder: Path, key: str | None) -> _Comparison:
    """The stored comparison with these thresholds (None: any).

    Empty if there is none or it cannot be read.
    """
    import numpy as np
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / "speakers.parquet")
        if key is not None and (table.schema.metadata or {}).get(b"cosines") != key.encode():
            raise ValueError("stored with other thresholds")
        with np.load(folder / f"likeness-{table.schema.metadata[b'part'].decode()}.npz") as saved:
            return _Comparison(
                dict(zip(table["speaker"].to_pylist(), table["digest"].to_pylist(), strict=True)),
                Embeddings(saved["voice_of"], saved["voice"]),
                Embeddings(saved["face_of"], saved["face"]),
                saved["same"],
                NearPairs(saved["near"], saved["near_cosine"], saved["near_by"]),
            )
    except (OSError, ValueError, KeyError):
        no_pairs = np.zeros((0, 2), np.int64)
        near = NearPairs(no_pairs, np.zeros(0, np.float32), np.zeros(0, np.int64))
        return _Comparison({}, _no_embeddings(), _no_embeddings(), no_pairs, near)


def _save(folder: Path, key: str, comparison: _Comparison) -> None:
    """Write the arrays under a new name, then the table that names them: a killed run leaves the old pair
    valid.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    part = hashlib.sha256((key + json.dumps(comparison.digests)).encode()).hexdigest()[:16]
    arrays = folder / f"likeness-{part}.npz"
    with open(arrays.with_suffix(".part"), "wb") as file:
        np.savez(
            file,
            voice_of=comparison.voices.speaker,
            voice=comparison.voices.matrix,
            face_of=comparison.faces.speaker,
            face=comparison.faces.matrix,
            same=comparison.same,
            near=comparison.near.pairs,
            near_cosine=comparison.near.cosine,
            near_by=comparison.near.kind,
        )
    os.replace(arrays.with_suffix(".part"), arrays)
    table = pa.table({"speaker": list(comparison.digests), "digest": list(comparison.digests.values())})
    table = table.replace_schema_metadata({"cosines": key, "part": part})
    pq.write_table(table, folder / ".speakers.part")
    os.replace(folder / ".speakers.part", folder / "speakers.parquet")
    for other in folder.glob("likeness-*.npz"):
        if other != arrays:
            other.unlink()
