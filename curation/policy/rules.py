"""The policy: rules in YAML, compiled to one DuckDB query over the clips table.

In: a policy file (or a name) and the clips' columns. Out: for every clip whether it is kept, the first rule that
failed, all rules that fail; and the funnel, in clips and in hours. A rule needs a value to judge: where a measurement
is missing (NULL or NaN) the clip fails with `missing: <column>`, never silently passes.

    name: mine
    extends: default            # optional: take a shipped policy's rules; one of the same name replaces it in its place
    drop: [sharpness]           # optional: leave these out
    rules:
      - name: face_height_px
        column: face_height_px  # with min, max, equals or in; or instead `sql:` an expression that must be true
        min: 128
        when: face_coverage > 0 # optional: the rule applies only where this is true; elsewhere it passes
        says: "the face is at least 128 px high"
        source: "where the threshold comes from"
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uniavgen.shards.corpus.schema import schema
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Scalar = bool | int | float | str


class Rule(BaseModel):
    """One filter: a column and its bounds, or an SQL expression.

    `says` is the sentence that people read, `source` where the threshold comes from.
    """

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    says: str
    source: str = "not stated"
    column: str = ""
    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    equals: Scalar | None = None
    one_of: list[Scalar] | None = Field(default=None, alias="in", min_length=1)
    sql: str = ""
    when: str = ""

    @model_validator(mode="after")
    def _one_condition(self) -> Rule:
        bounds = sum(part is not None for part in (self.min, self.max, self.equals, self.one_of))
        if self.sql and (self.column or bounds):
            raise ValueError("give either sql or a column with its bounds, not both")
        if not self.sql and not self.column:
            raise ValueError("give a column with min, max, equals or in; or an sql expression")
        if not self.sql and not bounds:
            raise ValueError("a column needs min, max, equals or in")
        return self


@dataclass(frozen=True)
class Policy:
    """Rules in the order in which they are asked. Made by `load_policy` or `policy_from`, which check the columns."""

    name: str
    rules: tuple[Rule, ...]

    @property
    def digest(self) -> str:
        """Identity of what the policy decides: a hash of its rules without their prose."""
        deciding = [rule.model_dump(exclude={"says", "source"}) for rule in self.rules]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]

    def document(self) -> dict[str, Any]:
        """The policy as plain data, written out in full; `policy_from` reads it back."""
        rules = [rule.model_dump(by_alias=True, exclude_defaults=True) for rule in self.rules]
        return {"name": self.name, "rules": rules}


@dataclass(frozen=True)
class FunnelRow:
    """One rule: what reached it, what it alone would reject, what it rejected first, and how much of that was missing."""

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


def policy_names() -> list[str]:
    """Names of the policies that ship with the package."""
    return sorted(
        file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml")
    )


def load_policy(name_or_path: str) -> Policy:
    """A shipped policy by name, or a YAML file by path. Raises UserError where it is absent or wrong."""
    path = Path(name_or_path)
    if name_or_path in policy_names():
        return parse_policy((_shipped() / f"{name_or_path}.yaml").read_text(), where=f"policy {name_or_path}")
    if not path.is_file():
        raise UserError(
            "no such policy",
            where=name_or_path,
            hint=f"name a YAML file or one of: {', '.join(policy_names())}",
            kind="bad-policy",
        )
    return parse_policy(path.read_text(errors="replace"), where=str(path))


def parse_policy(text: str, *, where: str) -> Policy:
    """The policy that a YAML text describes; `where` names the text in errors (UserError, kind `bad-policy`)."""
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _bad(f"the policy is not YAML: {error}", where) from error
    return policy_from(document, where=where)


def policy_from(document: Any, *, where: str) -> Policy:
    """The policy that plain data describes: `Policy.document()`, or what a YAML file holds. Raises UserError."""
    if not isinstance(document, dict) or not isinstance(document.get("rules"), list):
        raise _bad("a policy needs `name` and a list of `rules`", where)
    unknown = set(document) - {"name", "extends", "drop", "rules"}
    if unknown:
        raise _bad(
            f"unknown key {sorted(unknown)[0]!r}",
            where,
            sorted(unknown)[0],
            ["name", "extends", "drop", "rules"],
        )
    own = [_rule(entry, place, where) for place, entry in enumerate(document["rules"])]
    rules = _extend(document, own, where)
    if not rules:
        raise _bad("a policy needs at least one rule", where)
    return Policy(str(document.get("name") or where), tuple(rules))


def judge(clips: pa.Table, policy: Policy) -> pa.Table:
    """Judge every clip: columns `clip_id`, `kept`, `reason` ("" where kept), `failed_rules` (reasons in rule order).

    A reason is the rule's name or `missing: <column>`. Raises UserError where an expression cannot be evaluated.
    """
    slots = [f"r{i}" for i in range(len(policy.rules))]
    outcome = f"[{', '.join(f'nullif({slot}, {_literal(_SKIPPED)})' for slot in slots)}]"
    return _run(
        f"""SELECT clip_id, len(failed) = 0 AS kept, coalesce(failed[1], '') AS reason, failed AS failed_rules
        FROM (SELECT clip_id, list_filter({outcome}, lambda x: x IS NOT NULL) AS failed FROM ({_verdicts(policy)}))""",
        clips,
    )


def funnel(clips: pa.Table, policy: Policy) -> list[FunnelRow]:
    """What every rule takes away, in the policy's order; writes nothing, so any policy can be asked what it would do."""
    ranks = range(len(policy.rules))
    first = " ".join(f"WHEN k{i} >= {MISSING} THEN {i}" for i in ranks)
    counts = ", ".join(
        f"count(*) FILTER (k{i} {is_}) AS c{i}_{n}"
        for i in ranks
        for n, is_ in enumerate((f">= {MISSING}", f"= {MISSING}", f"= {NOT_APPLIED}"))
    )
    groups = _run(
        f"""WITH coded AS MATERIALIZED (SELECT hours, {_codes(policy)} FROM ({_verdicts(policy)})),
        ranked AS (SELECT *, CASE {first} ELSE {len(policy.rules)} END AS first FROM coded)
        SELECT first, count(*) AS clips, coalesce(sum(hours), 0) AS hours, {counts}
        FROM ranked GROUP BY first ORDER BY first""",
        clips,
    ).to_pylist()
    rows = []
    for i, rule in enumerate(policy.rules):
        reaching = [group for group in groups if group["first"] >= i]
        taken = [group for group in groups if group["first"] == i]
        numbers = [
            sum(group[name] for group in part) for part in (reaching, taken) for name in ("clips", "hours")
        ]
        rows.append(
            FunnelRow(
                rule.name,
                rule.says,
                rule.source,
                *numbers,
                *(sum(g[f"c{i}_{n}"] for g in groups) for n in range(3)),
            )
        )
    return rows


def outcomes(clips: pa.Table, policy: Policy) -> pa.Table:
    """What every rule says of every clip, in the clips' order: `clip_id`, and `k0`, `k1`...: PASSED, NOT_APPLIED, MISSING or
    FAILED for each rule. Raises UserError where an expression cannot be evaluated."""
    return _run(f"SELECT clip_id, {_codes(policy)} FROM ({_verdicts(policy)})", clips)


def columns_needed(policy: Policy) -> list[str]:
    """Columns of the clips table that judging takes; reading only these keeps a large corpus out of memory."""
    used = {"clip_id", "start_s", "end_s"}.union(*(_columns_of(rule) for rule in policy.rules))
    return [name for name in schema("clips").names if name in used]


PASSED, NOT_APPLIED, MISSING, FAILED = range(4)
"""What a rule says of a clip (`outcomes`); from MISSING on the clip fails the rule."""

_SKIPPED = "-"
_MISSING = "missing: "


def _verdicts(policy: Policy) -> str:
    """SQL with one row per clip: its id, its hours, and per rule NULL (passed), `-` (not applied) or the reason."""
    import pyarrow as pa

    types = schema("clips")
    clean = [
        f"nullif({_quoted(name)}, 'NaN') AS {_quoted(name)}"
        if pa.types.is_floating(types.field(name).type)
        else _quoted(name)
        for name in columns_needed(policy)
    ]
    verdicts = ", ".join(f"{_verdict(rule)} AS r{i}" for i, rule in enumerate(policy.rules))
    return f"SELECT clip_id, (end_s - start_s) / 3600 AS hours, {verdicts} FROM (SELECT {', '.join(clean)} FROM clips)"


def _codes(policy: Policy) -> str:
    """SQL of the columns `k0`, `k1`... that `outcomes` gives, from `_verdicts`."""
    return ", ".join(
        f"CASE WHEN r{i} IS NULL THEN {PASSED} WHEN r{i} = {_literal(_SKIPPED)} THEN {NOT_APPLIED} "
        f"WHEN starts_with(r{i}, {_literal(_MISSING)}) THEN {MISSING} ELSE {FAILED} END::TINYINT AS k{i}"
        for i in range(len(policy.rules))
    )


def _verdict(rule: Rule) -> str:
    condition = f"({rule.sql}\n)" if rule.sql else " AND ".join(_bounds(rule))
    unknown = f"WHEN ({condition}) IS NULL THEN {_literal(_MISSING + rule.name)}"
    applies = ""
    if rule.when:
        absent = f"WHEN ({rule.when}\n) IS NULL THEN {_literal(_MISSING + rule.name)}"
        applies = (
            f"{_absent(_references(rule.when))} {absent} WHEN NOT ({rule.when}\n) THEN {_literal(_SKIPPED)}"
        )
    missing = _absent(_references(rule.sql) if rule.sql else [rule.column])
    return f"CASE {applies} {missing} {unknown} WHEN {condition} THEN NULL ELSE {_literal(rule.name)} END"


def _absent(columns: list[str]) -> str:
    return " ".join(f"WHEN {_quoted(name)} IS NULL THEN {_literal(_MISSING + name)}" for name in columns)


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


def _run(sql: str, clips: pa.Table) -> pa.Table:
    import duckdb

    try:
        with duckdb.connect() as connection:
            connection.register("clips", clips)
            return connection.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the policy cannot be evaluated: {reason}", hint="check its sql and when", kind="bad-policy"
        ) from error


def _columns_of(rule: Rule) -> list[str]:
    """Columns that a rule reads, in order of appearance."""
    own = _references(rule.sql) if rule.sql else [rule.column]
    return list(dict.fromkeys(_references(rule.when) + own))


@lru_cache(maxsize=1024)
def _parsed(expression: str) -> dict[str, Any]:
    import duckdb

    with duckdb.connect() as connection:
        found = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT ({expression}\n)"]).fetchone()
    tree: dict[str, Any] = json.loads(found[0]) if found else {}
    return tree


def _references(expression: str) -> list[str]:
    """Columns that an SQL expression names, in order. Raises ValueError where it is not one plain expression."""
    if not expression:
        return []
    tree = _parsed(expression)
    if tree["error"]:
        raise ValueError(f"{expression!r} is not SQL: {tree['error_message']}")
    node = tree["statements"][0]["node"]
    if (
        len(tree["statements"]) > 1
        or len(node.get("select_list", ())) != 1
        or node["from_table"]["type"] != "EMPTY"
    ):
        raise ValueError(f"{expression!r} is not one expression")
    found: list[str] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("class") in ("SUBQUERY", "LAMBDA", "WINDOW"):
                raise ValueError(
                    f"{expression!r}: a rule judges one clip, without subqueries, lambdas or windows"
                )
            if part.get("class") == "COLUMN_REF":
                found.append(part["column_names"][0])
        for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            walk(child)

    walk(node["select_list"])
    return list(dict.fromkeys(found))


def _shipped() -> Traversable:
    return resources.files("uniavgen.curation.policy") / "policies"


def _bad(what: str, where: str, name: str = "", known: Sequence[str] = ()) -> UserError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"known: {', '.join(known)}"
        if known
        else "correct the policy"
    )
    return UserError(what, where=where, hint=hint, kind="bad-policy")


def _rule(entry: Any, place: int, where: str) -> Rule:
    """One checked rule. Raises UserError naming the rule and, for an unknown column or key, the nearest known one."""
    name = entry.get("name", f"number {place + 1}") if isinstance(entry, dict) else f"number {place + 1}"
    try:
        rule = Rule.model_validate(entry)
        used = _columns_of(rule)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        known = (
            [field.alias or key for key, field in Rule.model_fields.items()]
            if first["type"] == "extra_forbidden"
            else []
        )
        raise _bad(f"rule {name}: {' '.join([key, first['msg']]).strip()}", where, key, known) from error
    except ValueError as error:
        raise _bad(f"rule {name}: {error}", where) from error
    columns = schema("clips")
    for column in used:
        if column not in columns.names:
            raise _bad(f"rule {name}: no column {column!r} in the clips table", where, column, columns.names)
    if rule.column:
        _check_type(rule, columns.field(rule.column).type, where)
    return rule


def _check_type(rule: Rule, kind: pa.DataType, where: str) -> None:
    import pyarrow as pa

    values = [value for value in (rule.equals, *(rule.one_of or [])) if value is not None]
    texts = [isinstance(value, str) for value in values]
    if pa.types.is_floating(kind) and any(texts):
        raise _bad(f"rule {rule.name}: {rule.column} holds numbers, not text", where)
    if pa.types.is_string(kind) and (rule.min is not None or rule.max is not None or not all(texts)):
        raise _bad(
            f"rule {rule.name}: {rule.column} holds text, which has no min or max and equals no number", where
        )
    if pa.types.is_nested(kind):
        raise _bad(f"rule {rule.name}: {rule.column} is a list; use an sql expression on it", where)


def _extend(document: Mapping[str, Any], own: list[Rule], where: str) -> list[Rule]:
    """The rules of the policy that is extended, replaced by name and shortened by `drop`, then the rest of `own`."""
    _refuse_twice([rule.name for rule in own], where)
    parent = str(document.get("extends") or "")
    if parent and parent not in policy_names():
        raise _bad(f"`extends` names no shipped policy: {parent!r}", where, parent, policy_names())
    base = list(load_policy(parent).rules) if parent else []
    dropped = document.get("drop") or []
    names = [rule.name for rule in base]
    for name in dropped if isinstance(dropped, list) else [dropped]:
        if name not in names:
            raise _bad(f"`drop` names no rule of the extended policy: {name!r}", where, str(name), names)
    replacing = {rule.name: rule for rule in own}
    kept = [replacing.pop(rule.name, rule) for rule in base if rule.name not in dropped]
    return kept + list(replacing.values())


def _refuse_twice(names: list[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise _bad(f"two rules are named {name!r}", where)
