"""The clips that the page plays: which, why they were kept or not in a sentence and a value, and their media.

In: `judged` (clips with decisions) and the corpus's media. Out: plain data per clip, and previews in `report/clips`, bounded in
count and in bytes whatever the corpus's size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.curation.config import ReportConfig
from uniavgen.curation.duplicates.groups import DUPLICATE
from uniavgen.curation.policy.decisions import BOTH_SIDES
from uniavgen.curation.policy.rules import Policy, Rule, columns_needed
from uniavgen.curation.report.previews import preview, words_of
from uniavgen.curation.report.source_pages import by_turns
from uniavgen.curation.report.templating import number
from uniavgen.curation.report.totals import rows
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus

if TYPE_CHECKING:
    import duckdb

SAYS_AFTER_RULES = {
    DUPLICATE: "a better copy of it is kept",
    BOTH_SIDES: "its voice or face may be somebody's of train and somebody's of val at once",
}
"""Why clips that pass every rule are not kept."""


def choose(connection: duckdb.DuckDBPyConnection, config: ReportConfig) -> list[dict[str, Any]]:
    """Rows of the clips to play: kept ones from as many speakers as there are, and a few of every reason.

    At most `config.max_kept` and `config.max_rejected`; of more reasons than that leaves room for, the commonest are shown.
    """
    return rows(
        connection,
        """WITH turned AS (SELECT clip_id, kept, reason,
            row_number() OVER (PARTITION BY reason, speaker ORDER BY clip_id) AS turn FROM judged),
        placed AS (SELECT *, row_number() OVER (PARTITION BY reason ORDER BY turn, clip_id) AS place,
            count(*) OVER (PARTITION BY reason) AS alike FROM turned),
        ranked AS (SELECT *, row_number() OVER (PARTITION BY kept ORDER BY place, alike DESC, reason) AS rank FROM placed
            WHERE place <= CASE WHEN kept THEN $kept ELSE $each END)
        SELECT judged.* FROM judged JOIN ranked USING (clip_id)
        WHERE rank <= CASE WHEN judged.kept THEN $kept ELSE $rejected END
        ORDER BY judged.kept DESC, place, alike DESC, judged.reason""",
        kept=config.max_kept,
        each=config.per_reason,
        rejected=config.max_rejected,
    )


def named(connection: duckdb.DuckDBPyConnection, clips: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of these clips."""
    return rows(
        connection,
        "SELECT * FROM judged WHERE list_contains($clips, clip_id) ORDER BY clip_id",
        clips=list(clips),
    )


def reasons(connection: duckdb.DuckDBPyConnection, policy: Policy) -> list[dict[str, Any]]:
    """Every reason of a rejection, the commonest first: `reason`, `says` (a sentence), `clips`, `seconds`."""
    found = rows(
        connection,
        """SELECT reason, count(*) AS clips, sum(seconds) AS seconds FROM judged WHERE NOT kept
        GROUP BY reason ORDER BY clips DESC, reason""",
    )
    return [row | {"says": sentence(row["reason"], policy)} for row in found]


def sentence(reason: str, policy: Policy) -> str:
    """Why a clip with this reason is not kept, for people."""
    missing = reason.removeprefix("missing: ")
    if missing != reason:
        return f"{missing} was not measured"
    says = {rule.name: f"the rule asks that {rule.says}" for rule in policy.rules}
    return says.get(reason) or SAYS_AFTER_RULES.get(reason, "")


def sources_of(clips: Sequence[dict[str, Any]]) -> list[str]:
    """Sources of the clips, the first of every reason before the second of any."""
    groups: dict[str, list[str]] = {}
    for clip in clips:
        groups.setdefault(clip["reason"], []).append(clip["source_id"])
    return by_turns(groups.values(), sys.maxsize)


def with_media(
    corpus: Corpus, folder: Path, clips: Sequence[dict[str, Any]], policy: Policy, config: ReportConfig
) -> list[dict[str, Any]]:
    """The clips as the page shows them, with previews in `folder`; previews of clips that are not among them are deleted.

    Adds `signals`, `words`, `readings` (what each rule read, as text), `told` (the value that decided) and `media`
    (`previews.preview`; None where there is none to read, or where `config.preview_mb` are used up: `no_room`). Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    room = config.preview_mb * 1_000_000
    shown, used = [], set()
    said = corpus.read(
        "clips", ["clip_id", "words"], only=("clip_id", [row["clip_id"] for row in clips])
    ).to_pylist()
    words = {row["clip_id"]: words_of(row) for row in said}
    for row in clips:
        media = preview(corpus, row["clip_id"], folder) if room > 0 else None
        size = (folder / media["file"]).stat().st_size if media else 0
        no_room = room <= 0 or size > room
        if media and not no_room:
            used.add(media["file"])
            room -= size
        shown.append(
            _example(row, policy)
            | {"words": words[row["clip_id"]], "media": None if no_room else media, "no_room": no_room}
        )
    for path in folder.glob("*.mp4"):
        if path.name not in used:
            path.unlink()
    return shown


def bound_text(rule: Rule) -> str:
    """What a rule asks of its value, as text: `at least 8 dB`; empty where it is an expression."""
    unit = _unit(rule.column)
    if rule.sql:
        return ""
    if rule.equals is not None or rule.one_of is not None:
        wanted = [rule.equals] if rule.equals is not None else rule.one_of or []
        return " or ".join(_text(value) for value in wanted) + unit
    if rule.min is not None and rule.max is not None:
        return f"{number(rule.min)} to {number(rule.max)}{unit}"
    return (f"at least {number(rule.min)}" if rule.min is not None else f"at most {number(rule.max)}") + unit


def _example(row: dict[str, Any], policy: Policy) -> dict[str, Any]:
    readings = {rule.name: _values(rule, row) for rule in policy.rules}
    signals = {name: row[name] for name in SIGNALS}
    return {**row, "signals": signals, "readings": readings, "told": readings.get(row["reason"], "")}


def _values(rule: Rule, row: dict[str, Any]) -> str:
    """What a rule read of a clip, beside what it asks: `snr_db 4.2 dB, asked: at least 8 dB`."""
    read = [rule.column] if rule.column else columns_needed(Policy("", (rule,)))
    shown = [
        f"{name} {_text(row[name])}{_unit(name)}"
        for name in read
        if rule.column or name not in ("clip_id", "start_s", "end_s")
    ]
    asked = bound_text(rule)
    return ", ".join(shown) + (f"; asked: {asked}" if asked else "")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, int | float):
        return number(value)
    text = str(value)
    return f"“{text if len(text) <= 40 else text[:39] + '…'}”" if text else "empty"


def _unit(column: str) -> str:
    """The unit of a signal as it follows a number; ranges (`0..1`) are none."""
    unit = SIGNALS[column].unit if column in SIGNALS else ""
    return (
        f" {unit}"
        if unit and ".." not in unit and unit not in ("0 or 1", "ratio", "score", "variance")
        else ""
    )
