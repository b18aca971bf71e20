"""Policies: rules in YAML over the columns of the clips table, checked when they are loaded.

A rule is one line of YAML. It judges one column (or an SQL expression), names the bound, and says in a
sentence what it asks for:

    name: mine
    extends: default            # optional: start from a shipped policy; equally named rules are replaced
    drop: [sharpness]           # optional: rules of that policy to leave out
    rules:
      - {name: sharp, column: sharpness, min: 50, says: the picture is sharp, source: tried on 200 clips}
    keep:                       # optional: clips that pass whatever the rules say
      - {clip: 34a2ea61d2c09f7b11e0, who: anna, why: the music is quiet}
    reject:                     # optional: clips that fail whatever the rules say
      - {clip: 9b1f00c2a7d1442e5f6a, who: anna, why: a photograph is shown}

A rule has a `column` with `min`, `max`, `equals` or `in`, or else an `sql` expression that must be true.
`when` is an optional SQL condition: a clip for which it is false passes the rule. A clip whose value was not
measured (NULL or NaN) fails with the reason `missing: <column>`. `verdicts.py` applies a policy to clips.
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
from uniavgen.shards.errors import UserError, nearest_name
from uniavgen.shards.text_files import read_text

if TYPE_CHECKING:
    import pyarrow as pa

Scalar = bool | int | float | str

POLICY_KEYS = ("name", "extends", "drop", "rules", "keep", "reject")

REJECTED_BY_HAND = "rejected-by-hand"
"""Name of the rule that the clips in `reject` fail."""


class Rule(BaseModel):
    """One filter: a column with bounds, or an SQL expression.

    `says` is the sentence shown to users, `source` the origin of the threshold.
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


class HandDecision(BaseModel):
    """A clip that a person decided: its id, who decided and why."""

    model_config = ConfigDict(extra="forbid")
    clip: str = Field(pattern=r"^[0-9A-Za-z_-]+$")
    who: str = Field(min_length=1)
    why: str = Field(min_length=1)


@dataclass(frozen=True)
class Policy:
    """Rules in the order of evaluation.

    `load_policy`, `parse_policy` and `policy_from` make checked policies.

    `keep` and `reject` are decisions by hand. The clips in `reject` fail the first rule, REJECTED_BY_HAND; no
    rule applies to the clips in `keep`.
    """

    name: str
    rules: tuple[Rule, ...]
    keep: tuple[HandDecision, ...] = ()
    reject: tuple[HandDecision, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of the rules without `says` and `source`: equal digests give equal decisions."""
        deciding: list[Any] = [rule.model_dump(exclude={"says", "source"}) for rule in self.rules]
        if self.keep:
            deciding.append({"keep": sorted(decision.clip for decision in self.keep)})
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]

    def document(self) -> dict[str, Any]:
        """The policy as plain data with every rule written out; `policy_from` reads it back."""
        rules = [
            rule.model_dump(by_alias=True, exclude_defaults=True)
            for rule in self.rules
            if rule.name != REJECTED_BY_HAND
        ]
        by_hand = {"keep": self.keep, "reject": self.reject}
        return {"name": self.name, "rules": rules} | {
            key: [decision.model_dump() for decision in decisions]
            for key, decisions in by_hand.items()
            if decisions
        }


def policy_names() -> list[str]:
    """Names of the policies that ship with the package."""
    return sorted(
        file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml")
    )


def load_policy(name_or_path: str) -> Policy:
    """A shipped policy by name, or a YAML file by path.

    Raises UserError (`bad-policy`) if it is missing or invalid.
    """
    path = Path(name_or_path)
    if name_or_path in policy_names():
        return parse_policy((_shipped() / f"{name_or_path}.yaml").read_text(), where=f"policy {name_or_path}")
    if not path.is_file():
        raise UserError(
            "no such policy",
            where=name_or_path,
            hint=f"{nearest_name(name_or_path, policy_names())} name a YAML file or one of: "
            f"{', '.join(policy_names())}".strip(),
            kind="bad-policy",
        )
    return parse_policy(read_text(path, "the policy"), where=str(path))


def parse_policy(text: str, *, where: str) -> Policy:
    """The policy in a YAML text. `where` names the text in errors. Raises UserError (`bad-policy`)."""
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _bad_policy(f"the policy is not YAML: {error}", where) from error
    return policy_from(document, where=where)


def policy_from(document: Any, *, where: str) -> Policy:
    """The policy in plain data: the content of a YAML file, or `Policy.document()`.

    Raises UserError (`bad-policy`).
    """
    if not isinstance(document, dict) or not isinstance(document.get("rules"), list):
        raise _bad_policy("a policy needs `name` and a list of `rules`", where)
    for key in sorted(set(document) - set(POLICY_KEYS)):
        raise _bad_policy(f"unknown key {key!r}", where, key, POLICY_KEYS)
    new_rules = [_checked_rule(entry, number, where) for number, entry in enumerate(document["rules"], 1)]
    _refuse_duplicate_names(new_rules, where)
    rules = _extend(document, new_rules, where)
    if not rules:
        raise _bad_policy("a policy needs at least one rule", where)
    keep, reject = (_hand_decisions(document.get(key), key, where) for key in ("keep", "reject"))
    for clip in sorted({decision.clip for decision in keep} & {decision.clip for decision in reject}):
        raise _bad_policy(f"clip {clip} is both in `keep` and in `reject`", where)
    if reject:
        rules.insert(0, _rejecting_rule(reject))
    return Policy(str(document.get("name") or where), tuple(rules), keep, reject)


def columns_read(rule: Rule) -> list[str]:
    """Columns of the clips table that a rule reads, in order of appearance."""
    condition = column_references(rule.sql) if rule.sql else [rule.column]
    return list(dict.fromkeys(column_references(rule.when) + condition))


def column_references(expression: str) -> list[str]:
    """Columns named in an SQL expression, in order. Raises ValueError if it is not one plain expression."""
    if not expression:
        return []
    tree = _syntax_tree(expression)
    if tree["error"]:
        raise ValueError(f"{expression!r} is not SQL: {tree['error_message']}")
    node = tree["statements"][0]["node"]
    if (
        len(tree["statements"]) > 1
        or len(node.get("select_list", ())) != 1
        or node["from_table"]["type"] != "EMPTY"
    ):
        raise ValueError(f"{expression!r} is not one expression")
    columns: list[str] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("class") in ("SUBQUERY", "LAMBDA", "WINDOW"):
                raise ValueError(
                    f"{expression!r}: a rule judges one clip, without subqueries, lambdas or windows"
                )
            if part.get("class") == "COLUMN_REF":
                columns.append(part["column_names"][0])
        for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            walk(child)

    walk(node["select_list"])
    return list(dict.fromkeys(columns))


@lru_cache(maxsize=1024)
def _syntax_tree(expression: str) -> dict[str, Any]:
    import duckdb

    with duckdb.connect() as connection:
        row = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT ({expression}\n)"]).fetchone()
    tree: dict[str, Any] = json.loads(row[0]) if row else {}
    return tree


def _hand_decisions(entries: Any, key: str, where: str) -> tuple[HandDecision, ...]:
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise _bad_policy(f"`{key}` is a list of {{clip: ID, who: NAME, why: TEXT}}", where)
    decisions = []
    for entry in entries:
        try:
            decisions.append(HandDecision.model_validate(entry))
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0]) if first["loc"] else ""
            message = f"`{key}` entry {entry!r}: {field} {first['msg']}"
            raise _bad_policy(message, where, field, list(HandDecision.model_fields)) from error
    return tuple({decision.clip: decision for decision in decisions}.values())


def _rejecting_rule(decisions: Sequence[HandDecision]) -> Rule:
    clips = ", ".join(f"'{clip}'" for clip in sorted(decision.clip for decision in decisions))
    return Rule(
        name=REJECTED_BY_HAND,
        sql=f"clip_id NOT IN ({clips})",
        says="nobody rejected the clip by hand",
        source=f"decided by hand: {', '.join(sorted({decision.who for decision in decisions}))}",
    )


def _shipped() -> Traversable:
    return resources.files("uniavgen.curation.policy") / "policies"


def _checked_rule(entry: Any, number: int, where: str) -> Rule:
    """One rule.

    Raises UserError that names the rule and, for an unknown column or key, the nearest known one.
    """
    name = entry.get("name", f"number {number}") if isinstance(entry, dict) else f"number {number}"
    try:
        rule = Rule.model_validate(entry)
        columns = columns_read(rule)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        known = [field.alias or key for key, field in Rule.model_fields.items()]
        message = f"rule {name}: {' '.join([key, first['msg']]).strip()}"
        raise _bad_policy(message, where, key, known if first["type"] == "extra_forbidden" else ()) from error
    except ValueError as error:
        raise _bad_policy(f"rule {name}: {error}", where) from error
    table = schema("clips")
    for column in columns:
        if column not in table.names:
            message = f"rule {name}: no column {column!r} in the clips table"
            raise _bad_policy(message, where, column, table.names)
    if rule.column:
        _check_type(rule, table.field(rule.column).type, where)
    return rule


def _check_type(rule: Rule, column_type: pa.DataType, where: str) -> None:
    import pyarrow as pa

    values = [value for value in (rule.equals, *(rule.one_of or [])) if value is not None]
    is_text = [isinstance(value, str) for value in values]
    prefix = f"rule {rule.name}: {rule.column}"
    if pa.types.is_floating(column_type) and any(is_text):
        raise _bad_policy(f"{prefix} holds numbers, not text", where)
    if pa.types.is_string(column_type) and (rule.min is not None or rule.max is not None or not all(is_text)):
        raise _bad_policy(f"{prefix} holds text, which has no min or max and equals no number", where)
    if pa.types.is_nested(column_type):
        raise _bad_policy(f"{prefix} is a list; use an sql expression on it", where)


def _refuse_duplicate_names(rules: Sequence[Rule], where: str) -> None:
    names = [rule.name for rule in rules]
    if REJECTED_BY_HAND in names:
        raise _bad_policy(f"the name {REJECTED_BY_HAND!r} is reserved for `reject`", where)
    for name in names:
        if names.count(name) > 1:
            raise _bad_policy(f"two rules are named {name!r}", where)


def _extend(document: Mapping[str, Any], new_rules: list[Rule], where: str) -> list[Rule]:
    """Rules of the extended policy without those in `drop`, replaced by name, followed by the other new
    rules.
    """
    parent = str(document.get("extends") or "")
    if parent and parent not in policy_names():
        raise _bad_policy(f"`extends` names no shipped policy: {parent!r}", where, parent, policy_names())
    base = list(load_policy(parent).rules) if parent else []
    base_names = [rule.name for rule in base]
    drop = document.get("drop") or []
    dropped = drop if isinstance(drop, list) else [drop]
    for name in dropped:
        if name not in base_names:
            message = f"`drop` names no rule of the extended policy: {name!r}"
            raise _bad_policy(message, where, str(name), base_names)
    replacing = {rule.name: rule for rule in new_rules}
    kept = [replacing.pop(rule.name, rule) for rule in base if rule.name not in dropped]
    return kept + list(replacing.values())


def _bad_policy(what: str, where: str, name: str = "", known: Sequence[str] = ()) -> UserError:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if nearest:
        hint = f"did you mean {nearest[0]!r}?"
    else:
        hint = f"known: {', '.join(known)}" if known else "correct the policy"
    return UserError(what, where=where, hint=hint, kind="bad-policy")
