"""Decide: judge every clip by a policy, keep voices apart, and write the decisions table.

In: the clips table, a policy, a split configuration. Out: one row per clip in `decisions`, and a summary. Decisions are
a pure function of clips, policy and the sides that clips had before; deciding the same again writes nothing. The policy
is kept beside the tables as `policies/<digest>.json`, so that a decision can always be explained.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from uniavgen.curation.config import DuplicateConfig, SplitConfig
from uniavgen.curation.duplicates.groups import without_duplicates
from uniavgen.curation.people.identities import SPEAKER, Likeness, components, likeness
from uniavgen.curation.people.splits import NEITHER, VAL, Group, assign_sides, group_speakers, stratum_of
from uniavgen.curation.policy.rules import FunnelRow, Policy, funnel, judge, policy_from
from uniavgen.curation.policy.what_if import clips_for
from uniavgen.shards.corpus.deletion import read_tombstones
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

BOTH_SIDES = "split: on both sides"
"""Reason of clips whose person may be somebody of train and somebody of val at once."""


@dataclass(frozen=True)
class CurationSummary:
    """What was decided; `hours` count whole clips, `reasons` the first reason of every rejected clip."""

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
    """By voice or face, the cosine from which persons were taken to be near, where it was raised (`curation.identities`)."""


def decide(
    corpus: Corpus, policy: Policy, split: SplitConfig | None = None, copies: DuplicateConfig | None = None
) -> CurationSummary:
    """Judge every clip, reject all but the best of copies, split, and commit the decisions in one transaction.

    Raises UserError where the corpus has no clips or the policy cannot be evaluated; nothing is written then.
    """
    erasures = read_tombstones(corpus.root).deletions
    data, summary = decisions_by(corpus, policy, split, copies)
    if summary.written:
        _keep_policy(corpus, policy)
        with corpus.writing():
            if read_tombstones(corpus.root).deletions != erasures:
                hint = "decide again: uniavgen curate"
                raise UserError(
                    "something was forgotten meanwhile; nothing is decided",
                    where=corpus.root,
                    hint=hint,
                    kind="busy",
                )
            corpus.replace("decisions", data)
    return summary


def decisions_by(
    corpus: Corpus,
    policy: Policy,
    split: SplitConfig | None = None,
    copies: DuplicateConfig | None = None,
    *,
    cache: bool = True,
) -> tuple[pa.Table, CurationSummary]:
    """The decisions table that `decide` would commit, and its summary; `written` says whether they differ from today's.

    With `cache` the pairs of similar speakers and clips that were compared are stored in the corpus for the next call;
    without it nothing at all is written. Raises UserError as `decide` does.
    """
    started = time.monotonic()
    clips = clips_for(corpus, policy)
    verdicts = without_duplicates(corpus, judge(clips, policy), copies or DuplicateConfig(), cache=cache)
    alike = likeness(corpus, split or SplitConfig(), cache=cache)
    data = _with_splits(corpus, verdicts, policy, split or SplitConfig(), alike)
    changed = not _same(corpus.read("decisions"), data)
    summary = _summary(clips, data, policy, changed, time.monotonic() - started)
    return data, replace(summary, near_cut=alike.cut)


def decided_policy(corpus: Corpus) -> Policy:
    """The policy that made the decisions as they stand. Raises UserError where nothing was decided."""
    digests = set(corpus.read("decisions", columns=["policy_digest"])["policy_digest"].to_pylist())
    if not digests:
        raise UserError(
            "nothing was decided yet",
            where=corpus.root,
            hint="decide first: uniavgen curate",
            kind="no-decisions",
        )
    path = corpus.root / "policies" / f"{sorted(digests)[0]}.json"
    if not path.is_file():
        raise UserError(
            "the policy of the decisions is missing", where=path, hint="decide again: uniavgen curate"
        )
    return policy_from(json.loads(path.read_text()), where=str(path))


def _with_splits(
    corpus: Corpus, verdicts: pa.Table, policy: Policy, split: SplitConfig, alike: Likeness
) -> pa.Table:
    """Verdicts with the digest and every clip's side, in the order of clip ids. Rejected clips have a side too: a
    looser policy then moves nobody. A clip that would pass but ties both sides together is rejected for that."""
    import pyarrow as pa

    sides = _sides(corpus, verdicts, split, alike)
    named = {
        "speaker": pa.array(list(sides), pa.string()),
        "split": pa.array(list(sides.values()), pa.string()),
    }
    return corpus.query(
        f"""SELECT clip_id, kept AND split <> '{NEITHER}' AS kept,
        CASE WHEN kept AND split = '{NEITHER}' THEN '{BOTH_SIDES}' ELSE reason END AS reason,
        CASE WHEN split = '{NEITHER}' THEN list_append(failed_rules, '{BOTH_SIDES}') ELSE failed_rules END AS failed_rules,
        '{policy.digest}' AS policy_digest, split
        FROM verdicts JOIN (SELECT clip_id, {SPEAKER} AS speaker FROM clips) USING (clip_id) JOIN sides USING (speaker)
        ORDER BY clip_id""",
        verdicts=verdicts,
        sides=pa.table(named),
    )


def _sides(corpus: Corpus, verdicts: pa.Table, split: SplitConfig, alike: Likeness) -> dict[str, str]:
    """The side of every speaker."""
    import numpy as np

    facts = _speaker_facts(corpus, verdicts)
    same = [alike.same]
    if split.join_sources:
        first: dict[str, int] = {}
        pairs = [(first.setdefault(facts[name]["source"], i), i) for i, name in enumerate(alike.speakers)]
        same.append(np.array(pairs, np.int64).reshape(-1, 2))
    labels = components(len(alike.speakers), same)
    members, near = group_speakers(alike.speakers, labels.tolist(), alike.near.tolist())
    groups = [_group(names, [facts[name] for name in names], split) for names in members]
    sides = assign_sides(groups, near, split)
    return {name: side for names, side in zip(members, sides, strict=True) for name in names}


def _group(names: tuple[str, ...], facts: list[dict[str, Any]], split: SplitConfig) -> Group:
    """One person of its speakers; the one with most kept seconds says the stratum."""
    main = max(facts, key=lambda fact: (fact["seconds"], fact["speaker"]))
    before = frozenset(side for fact in facts for side in fact["before"] or ())
    stratum = stratum_of(split, main["language"], main["pitch_hz"], main["clip_s"])
    return Group(names, sum(fact["seconds"] for fact in facts), before, stratum)


def _speaker_facts(corpus: Corpus, verdicts: pa.Table) -> dict[str, dict[str, Any]]:
    """Of every speaker: its source, its kept seconds, the sides it had, and what its stratum is made of."""
    rows = corpus.query(
        f"""SELECT {SPEAKER} AS speaker, min(source_id) AS source, mode(language) AS language, median(pitch_hz) AS pitch_hz,
        median(end_s - start_s) AS clip_s, sum(CASE WHEN kept THEN greatest(end_s - start_s, 0) ELSE 0 END) AS seconds,
        list(DISTINCT earlier.split) FILTER (earlier.split IS NOT NULL) AS before
        FROM clips JOIN verdicts USING (clip_id) LEFT JOIN earlier USING (clip_id) GROUP BY 1""",
        verdicts=verdicts.select(["clip_id", "kept"]),
        earlier=corpus.read("decisions", columns=["clip_id", "split"]),
    )
    return {row["speaker"]: row for row in rows.to_pylist()}


def _same(before: pa.Table, data: pa.Table) -> bool:
    return len(before) == len(data) and before.sort_by("clip_id").equals(data.cast(before.schema))


def _keep_policy(corpus: Corpus, policy: Policy) -> None:
    path = corpus.root / "policies" / f"{policy.digest}.json"
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(policy.document(), indent=1, ensure_ascii=False) + "\n")
    os.replace(part, path)


def _summary(
    clips: pa.Table, data: pa.Table, policy: Policy, written: bool, seconds: float
) -> CurationSummary:
    import duckdb

    with duckdb.connect() as connection:
        connection.register("clips", clips)
        connection.register("decisions", data)
        totals = connection.execute(
            """SELECT count(*), count(*) FILTER (kept), coalesce(sum(end_s - start_s) / 3600, 0),
            coalesce(sum(end_s - start_s) FILTER (kept) / 3600, 0), count(*) FILTER (kept AND split = $val)
            FROM clips JOIN decisions USING (clip_id)""",
            {"val": VAL},
        ).fetchone()
        reasons = connection.execute(
            "SELECT reason, count(*) FROM decisions WHERE NOT kept GROUP BY reason ORDER BY count(*) DESC, reason"
        ).fetchall()
    count, kept, hours, kept_hours, val = totals or (0, 0, 0.0, 0.0, 0)
    rows = funnel(clips, policy)
    return CurationSummary(
        policy.name,
        policy.digest,
        count,
        kept,
        hours,
        kept_hours,
        kept - val,
        val,
        dict(reasons),
        rows,
        written,
        seconds,
    )
