"""Example clips of the report page: which are shown, why each was kept or rejected, and their previews.

Their number and their total size are bounded at any corpus size (`ReportConfig`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.curation.config import ReportConfig
from uniavgen.curation.policy.decisions import explain_reason
from uniavgen.curation.policy.rules import Policy, Rule
from uniavgen.curation.policy.verdicts import columns_needed
from uniavgen.curation.report.previews import make_preview, timed_words
from uniavgen.curation.report.source_pages import interleave
from uniavgen.curation.report.templating import format_number, unit_after
from uniavgen.curation.report.totals import query_rows
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus

if TYPE_CHECKING:
    import duckdb


def choose_examples(connection: duckdb.DuckDBPyConnection, config: ReportConfig) -> list[dict[str, Any]]:
    """Rows of the example clips: kept ones of as many speakers as possible, and a few of every reason.

    At most `config.max_kept` and `config.max_rejected`; the most frequent reasons first.
    """
    return query_rows(
        connection,
        """WITH per_speaker AS (SELECT clip_id, kept, reason,
            row_number() OVER (PARTITION BY reason, speaker ORDER BY clip_id) AS turn FROM judged),
        per_reason AS (SELECT *, row_number() OVER (PARTITION BY reason ORDER BY turn, clip_id) AS number,
            count(*) OVER (PARTITION BY reason) AS frequency FROM per_speaker),
        ranked AS (SELECT *,
            row_number() OVER (PARTITION BY kept ORDER BY number, frequency DESC, reason) AS rank
            FROM per_reason
            WHERE number <= CASE WHEN kept THEN $kept ELSE $each END)
        SELECT judged.* FROM judged JOIN ranked USING (clip_id)
        WHERE rank <= CASE WHEN judged.kept THEN $kept ELSE $rejected END
        ORDER BY judged.kept DESC, number, frequency DESC, judged.reason""",
        kept=config.max_kept,
        each=config.per_reason,
        rejected=config.max_rejected,
    )


def read_clips(connection: duckdb.DuckDBPyConnection, clips: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of these clips."""
    return query_rows(
        connection,
        "SELECT * FROM judged WHERE list_contains($clips, clip_id) ORDER BY clip_id",
        clips=list(clips),
    )


def count_reasons(connection: duckdb.DuckDBPyConnection, policy: Policy) -> list[dict[str, Any]]:
    """Reasons for rejection, the most frequent first: `reason`, `says` (a sentence), `clips`, `seconds`."""
    rows = query_rows(
        connection,
        """SELECT reason, count(*) AS clips, sum(seconds) AS seconds FROM judged WHERE NOT kept
        GROUP BY reason ORDER BY clips DESC, reason""",
    )
    return [row | {"says": explain_reason(row["reason"], policy)} for row in rows]


def order_sources(clips: Sequence[dict[str, Any]]) -> list[str]:
    """Sources of the clips: the first of every reason before the second of any."""
    by_reason: dict[str, list[str]] = {}
    for clip in clips:
        by_reason.setdefault(clip["reason"], []).append(clip["source_id"])
    return interleave(by_reason.values(), sys.maxsize)


def add_previews(
    corpus: Corpus, folder: Path, clips: Sequence[dict[str, Any]], policy: Policy, config: ReportConfig
) -> list[dict[str, Any]]:
    """The clips with the data of their cards, and previews in `folder`. Other previews there are deleted.

    Adds `signals`, `words`, `readings` (by rule, the values it read, as text), `deciding` (the reading of the
    clip's reason), `media` (`make_preview`; None without readable media) and `no_room` (`config.preview_mb`
    are used up). Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bytes_left = config.preview_mb * 1_000_000
    cards, used = [], set()
    names = ["clip_id", "transcript", "words"]
    rows = corpus.read("clips", names, only=("clip_id", [clip["clip_id"] for clip in clips]))
    words = {row["clip_id"]: timed_words(row) for row in rows.to_pylist()}
    for clip in clips:
        media = make_preview(corpus, clip["clip_id"], folder) if bytes_left > 0 else None
        size = (folder / media["file"]).stat().st_size if media else 0
        no_room = bytes_left <= 0 or size > bytes_left
        if media and not no_room:
            used.add(media["file"])
            bytes_left -= size
        cards.append(
            _card(clip, policy)
            | {"words": words[clip["clip_id"]], "media": None if no_room else media, "no_room": no_room}
        )
    for path in folder.glob("*.mp4"):
        if path.name not in used:
            path.unlink()
    return cards


def format_bounds(rule: Rule) -> str:
    """The bounds of a rule: `at least 8 dB`; empty for an SQL expression."""
    if rule.sql:
        return ""
    if rule.equals is not None or rule.one_of is not None:
        values = [rule.equals] if rule.equals is not None else rule.one_of or []
        return " or ".join(_format_value(value) for value in values) + _unit(rule.column, values[-1])
    if rule.min is not None and rule.max is not None:
        return f"{format_number(rule.min)} to {format_number(rule.max)}{_unit(rule.column, rule.max)}"
    if rule.min is not None:
        return f"at least {format_number(rule.min)}{_unit(rule.column, rule.min)}"
    return f"at most {format_number(rule.max)}{_unit(rule.column, rule.max)}"


def _card(row: dict[str, Any], policy: Policy) -> dict[str, Any]:
    readings = {rule.name: _reading(rule, row) for rule in policy.rules}
    signals = {name: row[name] for name in SIGNALS}
    return {**row, "signals": signals, "readings": readings, "deciding": readings.get(row["reason"], "")}


def _reading(rule: Rule, row: dict[str, Any]) -> str:
    """The values that a rule read, and its bounds: `snr_db 4.2 dB; required: at least 8 dB`."""
    columns = [rule.column] if rule.column else columns_needed(Policy("", (rule,)))
    values = [
        f"{name} {_format_value(row[name])}{_unit(name, row[name])}"
        for name in columns
        if rule.column or name not in ("clip_id", "start_s", "end_s")
    ]
    bounds = format_bounds(rule)
    return ", ".join(values) + (f"; required: {bounds}" if bounds else "")


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, int | float):
        return format_number(value)
    text = str(value)
    return f"“{text if len(text) <= 40 else text[:39] + '…'}”" if text else "empty"


def _unit(column: str, value: Any) -> str:
    """The unit as it follows a value; empty without one."""
    return unit_after(SIGNALS[column].unit, value) if column in SIGNALS and value is not None else ""
