"""Apply a policy to clips: one DuckDB query per question.

`judge` gives every clip's verdict with the reasons, `compute_funnel` the clips and hours that each rule
removes, and `rule_outcomes` the outcome of every rule for every clip. `_reason_columns` is the query that all
three build on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uniavgen.curation.policy.rules import Policy, Rule, Scalar, column_references, columns_read
from uniavgen.shards.corpus.schema import schema
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

PASSED, NOT_APPLIED, MISSING, FAILED = range(4)
"""Outcome of a rule for a clip (`rule_outcomes`). MISSING and FAILED reject the clip."""

MISSING_PREFIX = "missing: "
"""A reason that starts so names the column that was not measured."""

_NOT_APPLIED_REASON = "-"


@dataclass(frozen=True)
class FunnelRow:
    """One rule's effect.

    `clips_in`, `hours_in` reach the rule; `failed_first` of them fail it and no earlier rule. `failed`,
    `missing` and `not_applied` count over all clips, those rejected earlier included.
    """

    rule: str
    says: str
    source: str
    clips_in: int
    hours_in: float
    failed_first: int
    hours_failed_first: float
    failed: int
    missing: int
    not_applied: int


def columns_needed(policy: Policy) -> list[str]:
    """Columns of the clips table that judging reads.

    Reading only these keeps a large corpus out of memory.
    """
    used = {"clip_id", "start_s", "end_s"}.union(*(columns_read(rule) for rule in policy.rules))
    return [name for name in schema("clips").names if name in used]


def judge(clips: pa.Table, policy: Policy) -> pa.Table:
    """Verdict per clip: `clip_id`, `kept`, `reason` ("" if kept), `failed_rules` (all reasons, in rule
    order).

    A reason is a rule's name or `missing: <column>`. Raises UserError if an expression cannot be evaluated.
    """
    reasons = ", ".join(f"nullif(r{i}, {_literal(_NOT_APPLIED_REASON)})" for i in range(len(policy.rules)))
    failed = f"list_filter([{reasons}], lambda x: x IS NOT NULL)"
    return _query(
        f"""SELECT clip_id, len(failed) = 0 AS kept, coalesce(failed[1], '') AS reason, failed AS failed_rules
        FROM (SELECT clip_id, {failed} AS failed FROM ({_reason_columns(policy)}))""",
        clips,
    )


def compute_funnel(clips: pa.Table, policy: Policy) -> list[FunnelRow]:
    """What every rule removes, in the policy's order. Writes nothing, so it can be asked of any policy."""
    numbers = range(len(policy.rules))
    first_failed = " ".join(f"WHEN k{i} >= {MISSING} THEN {i}" for i in numbers)
    counts = ", ".join(
        f"count(*) FILTER (k{i} {condition}) AS c{i}_{name}"
        for i in numbers
        for name, condition in (
            ("failed", f">= {MISSING}"),
            ("missing", f"= {MISSING}"),
            ("not_applied", f"= {NOT_APPLIED}"),
        )
    )
    groups = _query(
        f"""WITH coded AS MATERIALIZED
            (SELECT hours, {_outcome_columns(policy)} FROM ({_reason_columns(policy)})),
        ranked AS (SELECT *, CASE {first_failed} ELSE {len(policy.rules)} END AS first FROM coded)
        SELECT first, count(*) AS clips, coalesce(sum(hours), 0) AS hours, {counts}
        FROM ranked GROUP BY first ORDER BY first""",
        clips,
    ).to_pylist()
    rows = []
    for i, rule in enumerate(policy.rules):
        reaching = [group for group in groups if group["first"] >= i]
        removed = [group for group in groups if group["first"] == i]
        rows.append(
            FunnelRow(
                rule.name,
                rule.says,
                rule.source,
                clips_in=sum(group["clips"] for group in reaching),
                hours_in=sum(group["hours"] for group in reaching),
                failed_first=sum(group["clips"] for group in removed),
                hours_failed_first=sum(group["hours"] for group in removed),
                failed=sum(group[f"c{i}_failed"] for group in groups),
                missing=sum(group[f"c{i}_missing"] for group in groups),
                not_applied=sum(group[f"c{i}_not_applied"] for group in groups),
            )
        )
    return rows


def rule_outcomes(clips: pa.Table, policy: Policy) -> pa.Table:
    """Outcome of every rule for every clip, in the clips' order: `clip_id`, and `k0`, `k1`... with PASSED,
    NOT_APPLIED, MISSING or FAILED.

    Raises UserError if an expression cannot be evaluated.
    """
    return _query(f"SELECT clip_id, {_outcome_columns(policy)} FROM ({_reason_columns(policy)})", clips)


def _reason_columns(policy: Policy) -> str:
    """SQL with one row per clip: `clip_id`, `hours`, and per rule `r<i>`: NULL (passed), `-` (not applied) or
    the reason.
    """
    import pyarrow as pa

    types = schema("clips")
    columns = [
        f"nullif({_quoted(name)}, 'NaN') AS {_quoted(name)}"
        if pa.types.is_floating(types.field(name).type)
        else _quoted(name)
        for name in columns_needed(policy)
    ]
    exempt = ", ".join(_literal(decision.clip) for decision in policy.keep)
    by_hand = f"WHEN clip_id IN ({exempt}) THEN {_literal(_NOT_APPLIED_REASON)}" if exempt else ""
    reasons = ", ".join(f"{_reason(rule, by_hand)} AS r{i}" for i, rule in enumerate(policy.rules))
    clips = f"(SELECT {', '.join(columns)} FROM clips)"
    return f"SELECT clip_id, (end_s - start_s) / 3600 AS hours, {reasons} FROM {clips}"


def _outcome_columns(policy: Policy) -> str:
    """SQL of the columns `k0`, `k1`... of `rule_outcomes`, from the reason columns."""
    not_applied, missing = _literal(_NOT_APPLIED_REASON), _literal(MISSING_PREFIX)
    return ", ".join(
        f"CASE WHEN r{i} IS NULL THEN {PASSED} WHEN r{i} = {not_applied} THEN {NOT_APPLIED} "
        f"WHEN starts_with(r{i}, {missing}) THEN {MISSING} ELSE {FAILED} END::TINYINT AS k{i}"
        for i in range(len(policy.rules))
    )


def _reason(rule: Rule, exempt: str) -> str:
    """SQL of one rule's reason. Missing values are tested before the condition, so NULL never passes.

    `exempt` is the WHEN clause of clips that the rule does not apply to; it may be empty.
    """
    condition = f"({rule.sql}\n)" if rule.sql else " AND ".join(_bounds(rule))
    unknown = f"THEN {_literal(MISSING_PREFIX + rule.name)}"
    applies = ""
    if rule.when:
        applies = (
            f"{_missing_cases(column_references(rule.when))} WHEN ({rule.when}\n) IS NULL {unknown} "
            f"WHEN NOT ({rule.when}\n) THEN {_literal(_NOT_APPLIED_REASON)}"
        )
    missing = _missing_cases(column_references(rule.sql) if rule.sql else [rule.column])
    return (
        f"CASE {exempt} {applies} {missing} WHEN ({condition}) IS NULL {unknown} "
        f"WHEN {condition} THEN NULL ELSE {_literal(rule.name)} END"
    )


def _missing_cases(columns: list[str]) -> str:
    return " ".join(
        f"WHEN {_quoted(name)} IS NULL THEN {_literal(MISSING_PREFIX + name)}" for name in columns
    )


def _bounds(rule: Rule) -> list[str]:
    column, parts = _quoted(rule.column), []
    if rule.min is not None:
        parts.append(f"{column} >= {_literal(rule.min)}")
    if rule.max is not None:
        parts.append(f"{column} <= {_literal(rule.max)}")
    if rule.equals is not None:
        parts.append(f"{column} = {_literal(rule.equals)}")
    if rule.one_of is not None:
        parts.append(f"{column} IN ({', '.join(_literal(value) for value in rule.one_of)})")
    return parts


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: Scalar) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return f"{float(value)!r}::DOUBLE"


def _query(sql: str, clips: pa.Table) -> pa.Table:
    import duckdb

    try:
        with duckdb.connect() as connection:
            connection.register("clips", clips)
            return connection.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        message = str(error).splitlines()[0]
        raise UserError(
            f"the policy cannot be evaluated: {message}", hint="check its sql and when", kind="bad-policy"
        ) from error
