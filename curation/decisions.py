"""Decide: judge every clip by a policy, keep voices apart, and write the decisions table.

In: the clips table, a policy, a split configuration. Out: one row per clip in `decisions`, and a summary. Decisions are
a pure function of clips, policy and the sides that clips had before; deciding the same again writes nothing. The policy
is kept beside the tables as `policies/<digest>.json`, so that a decision can always be explained.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curation.config import SplitConfig
from curation.policy import FunnelRow, Policy, columns_needed, funnel, judge, policy_from
from curation.splits import VAL, Speaker, assign_splits
from shards.corpus import Corpus
from shards.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_VOICES = 4


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


def decide(corpus: Corpus, policy: Policy, split: SplitConfig | None = None) -> CurationSummary:
    """Judge and split every clip and commit the decisions in one transaction.

    Raises UserError where the corpus has no clips or the policy cannot be evaluated; nothing is written then.
    """
    started = time.monotonic()
    clips = _clips(corpus, policy)
    verdicts = judge(clips, policy)
    data = _with_splits(corpus, verdicts, policy, split or SplitConfig())
    written = not _same(corpus.read("decisions"), data)
    if written:
        _keep_policy(corpus, policy)
        corpus.replace("decisions", data)
    return _summary(clips, data, policy, written, time.monotonic() - started)


def what_if(corpus: Corpus, policy: Policy) -> list[FunnelRow]:
    """The funnel that a policy would give on this corpus; writes nothing."""
    return funnel(_clips(corpus, policy), policy)


def decided_policy(corpus: Corpus) -> Policy:
    """The policy that made the decisions as they stand. Raises UserError where nothing was decided."""
    digests = set(corpus.read("decisions", columns=["policy_digest"])["policy_digest"].to_pylist())
    if not digests:
        raise UserError("nothing was decided yet", where=corpus.root, do="decide first: uniavgen curate", kind="no-decisions")
    path = corpus.root / "policies" / f"{sorted(digests)[0]}.json"
    if not path.is_file():
        raise UserError("the policy of the decisions is missing", where=path, do="decide again: uniavgen curate")
    return policy_from(json.loads(path.read_text()), where=str(path))


def explain(corpus: Corpus, clip_id: str) -> list[dict[str, Any]]:
    """Every rule for one clip: `rule`, `says`, `source`, `verdict` (passed, failed, missing, not applied), `values`.

    Raises UserError where the clip is unknown.
    """
    policy = decided_policy(corpus)
    clips = corpus.query(
        f"SELECT * FROM clips WHERE clip_id = '{clip_id.replace(chr(39), chr(39) * 2)}'",
        clips=corpus.read("clips", columns=columns_needed(policy)),
    )
    if not len(clips):
        raise UserError("no such clip", where=clip_id, do="take a clip_id from the report or the clips table")
    values = clips.to_pylist()[0]
    told = []
    for row, rule in zip(funnel(clips, policy), policy.rules, strict=True):
        verdict = "missing" if row.missing else "not applied" if row.not_applied else "failed" if row.failed else "passed"
        needed = columns_needed(Policy(policy.name, (rule,)))
        shown = {name: values[name] for name in needed if name not in ("clip_id", "start_s", "end_s")}
        told.append({"rule": rule.name, "says": rule.says, "source": rule.source, "verdict": verdict, "values": shown})
    return told


def _clips(corpus: Corpus, policy: Policy) -> pa.Table:
    clips = corpus.read("clips", columns=columns_needed(policy))
    if not len(clips):
        raise UserError(
            "the corpus has no clips", where=corpus.root, do="ingest videos first: uniavgen ingest", kind="no-clips"
        )
    return clips


def _with_splits(corpus: Corpus, verdicts: pa.Table, policy: Policy, split: SplitConfig) -> pa.Table:
    """Verdicts with the digest and every clip's side, in the order of clip ids. Rejected clips have a side too: a
    looser policy then moves nobody."""
    import pyarrow as pa

    clips = corpus.query(
        """SELECT clip_id, source_id, coalesce(nullif(speaker, ''), 'source:' || source_id) AS speaker, voice,
        CASE WHEN kept THEN greatest(end_s - start_s, 0) ELSE 0 END AS seconds, before.split AS before
        FROM clips JOIN verdicts USING (clip_id) LEFT JOIN before USING (clip_id)""",
        clips=corpus.read("clips", columns=["clip_id", "source_id", "speaker", "voice", "start_s", "end_s"]),
        verdicts=verdicts,
        before=corpus.read("decisions", columns=["clip_id", "split"]),
    )
    sides = assign_splits(_speakers(corpus, clips), split)
    named = {"speaker": pa.array(list(sides), pa.string()), "split": pa.array(list(sides.values()), pa.string())}
    return corpus.query(
        f"""SELECT clip_id, kept, reason, failed_rules, '{policy.digest}' AS policy_digest, split
        FROM verdicts JOIN of_clip USING (clip_id) JOIN sides USING (speaker) ORDER BY clip_id""",
        verdicts=verdicts,
        of_clip=clips.select(["clip_id", "speaker"]),
        sides=pa.table(named),
    )


def _speakers(corpus: Corpus, clips: pa.Table) -> list[Speaker]:
    """Every speaker once; the voice is the mean of at most four clips' (ingest gives a speaker one voice per source)."""
    import numpy as np

    found = corpus.query(
        f"""SELECT speaker, min(source_id) AS source, sum(seconds) AS seconds,
        list(DISTINCT before) FILTER (before IS NOT NULL) AS before,
        arg_min(voice, clip_id, {_VOICES}) FILTER (len(voice) > 0) AS voices FROM spoken GROUP BY speaker ORDER BY speaker""",
        spoken=clips,
    )
    speakers = []
    for name, source, seconds, before, voices in zip(*(found[column] for column in found.column_names), strict=True):
        mean = np.mean([voice.values.to_numpy() for voice in voices], axis=0) if voices.is_valid else None
        speakers.append(Speaker(name.as_py(), source.as_py(), mean, seconds.as_py(), frozenset(before.as_py() or ())))
    return speakers


def _same(before: pa.Table, data: pa.Table) -> bool:
    return len(before) == len(data) and before.sort_by("clip_id").equals(data.cast(before.schema))


def _keep_policy(corpus: Corpus, policy: Policy) -> None:
    path = corpus.root / "policies" / f"{policy.digest}.json"
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(policy.document(), indent=1, ensure_ascii=False) + "\n")
    os.replace(part, path)


def _summary(clips: pa.Table, data: pa.Table, policy: Policy, written: bool, seconds: float) -> CurationSummary:
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
        policy.name, policy.digest, count, kept, hours, kept_hours, kept - val, val, dict(reasons), rows, written, seconds
    )
