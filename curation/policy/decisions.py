"""Decide every clip: apply a policy, reject duplicates, split train and val by person, write the `decisions`
table.

Decisions are a pure function of the clips, the policy and the sides that clips had before. Deciding again
without a change writes nothing. The policy is stored as `policies/<digest>.json`, so that a decision can be
explained later.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from uniavgen.curation.config import DuplicateConfig, SplitConfig
from uniavgen.curation.duplicates.groups import DUPLICATE, reject_duplicates
from uniavgen.curation.people.identities import SPEAKER, SpeakerPairs, compare_speakers, connected_components
from uniavgen.curation.people.splits import (
    NEITHER,
    TRAIN,
    VAL,
    Person,
    assign_sides,
    group_speakers,
    stratum_of,
)
from uniavgen.curation.policy.rules import Policy, policy_from
from uniavgen.curation.policy.verdicts import MISSING_PREFIX, FunnelRow, compute_funnel, judge
from uniavgen.curation.policy.what_if import clips_for
from uniavgen.shards.corpus.deletion import read_tombstones
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS

if TYPE_CHECKING:
    import pyarrow as pa

BOTH_SIDES = "split: on both sides"
"""Reason of clips whose person may be the same as a person in train and as one in val."""


SAYS_AFTER_RULES = {
    DUPLICATE: "a better duplicate of it is kept",
    BOTH_SIDES: "its person may be the same as one in train and one in val",
}
"""Explanations of reasons that no rule gives."""


@dataclass(frozen=True)
class RejectedClips:
    """Clips rejected for one reason; `says` explains it."""

    reason: str
    says: str
    clips: int
    hours: float


@dataclass(frozen=True)
class CurationSummary:
    """Totals of one run.

    `hours` is the duration of all clips; `reasons` counts the first reason of each rejected clip.
    """

    policy: str
    policy_digest: str
    clips: int
    kept: int
    hours: float
    kept_hours: float
    train: int
    val: int
    reasons: dict[str, int]
    funnel: list[FunnelRow]
    written: bool
    seconds: float
    near_cut: dict[str, float] = field(default_factory=dict)
    """Raised similarity thresholds, by `voice` or `face` (`SpeakerPairs.raised`)."""
    rejected: list[RejectedClips] = field(default_factory=list)
    """All rejected clips by reason, the most frequent first: their counts add up to `clips - kept`."""
    val_hours: float = 0.0
    left_val: int = 0
    """Clips that were kept in val by the decisions before and are in train now."""


def decide(
    corpus: Corpus,
    policy: Policy,
    split: SplitConfig | None = None,
    duplicates: DuplicateConfig | None = None,
) -> CurationSummary:
    """Judge every clip, reject all but the best of duplicates, split, and commit the decisions in one
    transaction.

    Raises UserError, with nothing written, if the corpus has no clips or the policy cannot be evaluated.
    """
    deletions = read_tombstones(corpus.root).deletions
    decisions, summary = compute_decisions(corpus, policy, split, duplicates)
    _store_policy(corpus, policy)
    if summary.written:
        with corpus.writing():
            if read_tombstones(corpus.root).deletions != deletions:
                raise UserError(
                    "a deletion ran at the same time; no decisions were written",
                    where=corpus.root,
                    hint="decide again: uniavgen curate",
                    kind="busy",
                )
            corpus.replace("decisions", decisions)
    return summary


def compute_decisions(
    corpus: Corpus,
    policy: Policy,
    split: SplitConfig | None = None,
    duplicates: DuplicateConfig | None = None,
    *,
    cache: bool = True,
) -> tuple[pa.Table, CurationSummary]:
    """The decisions table that `decide` would commit, and its summary; `written`: it differs from the current
    table.

    `cache`: store the compared pairs of speakers and of clips in the corpus for the next call; without it
    nothing is written. Raises UserError as `decide` does.
    """
    started = time.monotonic()
    split = split or SplitConfig()
    clips = clips_for(corpus, policy)
    verdicts = reject_duplicates(corpus, judge(clips, policy), duplicates or DuplicateConfig(), cache=cache)
    pairs = compare_speakers(corpus, split, cache=cache)
    decisions = _decisions(corpus, verdicts, policy, split, pairs)
    before = corpus.read("decisions")
    changed = not _same_rows(before, decisions)
    summary = _summary(clips, decisions, policy, changed, time.monotonic() - started)
    return decisions, replace(summary, near_cut=pairs.raised, left_val=_count_left_val(before, decisions))


def decided_policy(corpus: Corpus) -> Policy:
    """The policy of the current decisions.

    Raises UserError if there are no decisions or the policy file is missing.
    """
    digests = set(corpus.read("decisions", columns=["policy_digest"])["policy_digest"].to_pylist())
    if not digests:
        raise UserError(
            "the corpus has no decisions yet",
            where=corpus.root,
            hint="decide first: uniavgen curate",
            kind="no-decisions",
        )
    path = corpus.root / "policies" / f"{sorted(digests)[0]}.json"
    if not path.is_file():
        raise UserError(
            "the policy of the decisions is missing", where=path, hint="decide again: uniavgen curate"
        )
    return policy_from(json.loads(path.read_text(encoding="utf-8")), where=str(path))


@dataclass(frozen=True)
class WindowFit:
    """Kept train clips that are at least as long as a training window of `frames`."""

    name: str
    frames: int
    clips: int
    hours: float
    share: float
    """Of the hours of all kept train clips."""


def fit_windows(corpus: Corpus, windows: Mapping[str, int]) -> list[WindowFit]:
    """How much of train fits each window (frames at 16 fps, by name). Training cannot use shorter clips."""
    fits = []
    for name, frames in windows.items():
        (row,) = corpus.query(
            f"""SELECT count(*) FILTER (fits) AS clips, coalesce(sum(hours) FILTER (fits), 0) AS hours,
            coalesce(sum(hours), 0) AS total FROM (SELECT (end_s - start_s) / 3600 AS hours,
                round((end_s - start_s) * {VIDEO_FPS}) >= {frames:d} AS fits
                FROM clips JOIN decisions USING (clip_id) WHERE kept AND split = '{TRAIN}')"""
        ).to_pylist()
        share = row["hours"] / row["total"] if row["total"] else 0.0
        fits.append(WindowFit(name, frames, row["clips"], row["hours"], share))
    return fits


def explain_reason(reason: str, policy: Policy) -> str:
    """A sentence that says why a clip with this reason was rejected."""
    if reason.startswith(MISSING_PREFIX):
        return f"{reason.removeprefix(MISSING_PREFIX)} was not measured"
    says = {rule.name: f"the rule requires that {rule.says}" for rule in policy.rules}
    return says.get(reason) or SAYS_AFTER_RULES.get(reason, "")


def _decisions(
    corpus: Corpus, verdicts: pa.Table, policy: Policy, split: SplitConfig, pairs: SpeakerPairs
) -> pa.Table:
    """Verdicts with the policy's digest and each clip's side, by clip id.

    Rejected clips have a side too, so that a looser policy moves no clip. A clip that would pass but whose
    person connects both sides is rejected.
    """
    import pyarrow as pa

    sides = _speaker_sides(corpus, verdicts, split, pairs)
    side_table = {
        "speaker": pa.array(list(sides), pa.string()),
        "split": pa.array(list(sides.values()), pa.string()),
    }
    return corpus.query(
        f"""SELECT clip_id, kept AND split <> '{NEITHER}' AS kept,
        CASE WHEN kept AND split = '{NEITHER}' THEN '{BOTH_SIDES}' ELSE reason END AS reason,
        CASE WHEN split = '{NEITHER}' THEN list_append(failed_rules, '{BOTH_SIDES}') ELSE failed_rules END
            AS failed_rules,
        '{policy.digest}' AS policy_digest, split
        FROM verdicts JOIN (SELECT clip_id, {SPEAKER} AS speaker FROM clips) USING (clip_id)
        JOIN sides USING (speaker) ORDER BY clip_id""",
        verdicts=verdicts,
        sides=pa.table(side_table),
    )


def _speaker_sides(
    corpus: Corpus, verdicts: pa.Table, split: SplitConfig, pairs: SpeakerPairs
) -> dict[str, str]:
    """The side of every speaker."""
    import numpy as np

    facts = _speaker_facts(corpus, verdicts)
    same = [pairs.same]
    if split.join_sources:
        first: dict[str, int] = {}
        joined = [(first.setdefault(facts[name]["source"], i), i) for i, name in enumerate(pairs.speakers)]
        same.append(np.array(joined, np.int64).reshape(-1, 2))
    labels = connected_components(len(pairs.speakers), same)
    members, near = group_speakers(pairs.speakers, labels.tolist(), pairs.near.tolist())
    crowding = dict(zip(pairs.speakers, pairs.crowding.tolist(), strict=True))
    persons = [
        _person(names, [facts[name] for name in names], sum(crowding[name] for name in names), split)
        for names in members
    ]
    sides = assign_sides(persons, near, split)
    return {name: side for names, side in zip(members, sides, strict=True) for name in names}


def _person(
    speakers: tuple[str, ...], facts: list[dict[str, Any]], crowding: int, split: SplitConfig
) -> Person:
    """One person from its speakers. The speaker with most kept seconds gives the stratum."""
    main = max(facts, key=lambda fact: (fact["seconds"], fact["speaker"]))
    before = frozenset(side for fact in facts for side in fact["before"] or ())
    stratum = stratum_of(split, main["language"], main["pitch_hz"], main["clip_s"])
    return Person(speakers, sum(fact["seconds"] for fact in facts), before, stratum, crowding)


def _speaker_facts(corpus: Corpus, verdicts: pa.Table) -> dict[str, dict[str, Any]]:
    """Per speaker: `source`, kept `seconds`, the sides it had `before`, and the values of its stratum."""
    rows = corpus.query(
        f"""SELECT {SPEAKER} AS speaker, min(source_id) AS source, mode(language) AS language,
        median(pitch_hz) AS pitch_hz, median(end_s - start_s) AS clip_s,
        sum(CASE WHEN kept THEN greatest(end_s - start_s, 0) ELSE 0 END) AS seconds,
        list(DISTINCT earlier.split) FILTER (earlier.split IS NOT NULL) AS before
        FROM clips JOIN verdicts USING (clip_id) LEFT JOIN earlier USING (clip_id) GROUP BY 1""",
        verdicts=verdicts.select(["clip_id", "kept"]),
        earlier=corpus.read("decisions", columns=["clip_id", "split"]),
    )
    return {row["speaker"]: row for row in rows.to_pylist()}


def _same_rows(before: pa.Table, after: pa.Table) -> bool:
    return len(before) == len(after) and before.sort_by("clip_id").equals(after.cast(before.schema))


def _count_left_val(before: pa.Table, after: pa.Table) -> int:
    import pyarrow.compute as pc

    were_in_val = before.filter((pc.field("split") == VAL) & pc.field("kept"))["clip_id"]
    in_train = after.filter(pc.field("split") == TRAIN)["clip_id"]
    return int(pc.sum(pc.is_in(were_in_val, value_set=in_train)).as_py() or 0)


def _store_policy(corpus: Corpus, policy: Policy) -> None:
    """Store the policy under its digest. Its words can have changed although its decisions are the same."""
    path = corpus.root / "policies" / f"{policy.digest}.json"
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    text = json.dumps(policy.document(), indent=1, ensure_ascii=False) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _summary(
    clips: pa.Table, decisions: pa.Table, policy: Policy, written: bool, seconds: float
) -> CurationSummary:
    import duckdb

    with duckdb.connect() as connection:
        connection.register("clips", clips)
        connection.register("decisions", decisions)
        totals = connection.execute(
            """SELECT count(*), count(*) FILTER (kept), coalesce(sum(end_s - start_s) / 3600, 0),
            coalesce(sum(end_s - start_s) FILTER (kept) / 3600, 0), count(*) FILTER (kept AND split = $val),
            coalesce(sum(end_s - start_s) FILTER (kept AND split = $val) / 3600, 0)
            FROM clips JOIN decisions USING (clip_id)""",
            {"val": VAL},
        ).fetchone()
        reasons = connection.execute(
            """SELECT reason, count(*), sum(end_s - start_s) / 3600 FROM clips JOIN decisions USING (clip_id)
            WHERE NOT kept GROUP BY reason ORDER BY count(*) DESC, reason"""
        ).fetchall()
    count, kept, hours, kept_hours, val, val_hours = totals or (0, 0, 0.0, 0.0, 0, 0.0)
    return CurationSummary(
        policy.name,
        policy.digest,
        clips=count,
        kept=kept,
        hours=hours,
        kept_hours=kept_hours,
        train=kept - val,
        val=val,
        reasons={reason: number for reason, number, _ in reasons},
        funnel=compute_funnel(clips, policy),
        written=written,
        seconds=seconds,
        rejected=[
            RejectedClips(reason, explain_reason(reason, policy), number, lost_hours)
            for reason, number, lost_hours in reasons
        ],
        val_hours=val_hours,
    )
