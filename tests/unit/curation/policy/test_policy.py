"""Policies: verdicts equal a naive evaluator, invalid rules are explained, shipped policies give the expected
reasons.
"""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.curation.policy.rules import (
    Policy,
    Rule,
    load_policy,
    parse_policy,
    policy_from,
    policy_names,
)
from uniavgen.curation.policy.verdicts import compute_funnel, judge
from uniavgen.shards.corpus.schema import schema
from uniavgen.shards.errors import UserError

NUMBERS = ("snr_db", "luma", "fps")


def naive_verdict(rule: Rule, row: dict[str, Any]) -> str | None:
    """Verdict of one rule on one clip without SQL: None (passed), "-" (not applied), or the reason."""
    if rule.when:  # the strategies only generate `<column> >= <number>`
        column, bound = rule.when.split(" >= ")
        if missing(row[column]):
            return f"missing: {column}"
        if row[column] < float(bound):
            return "-"
    value = row[rule.column]
    if missing(value):
        return f"missing: {rule.column}"
    good = (
        (rule.min is None or value >= rule.min)
        and (rule.max is None or value <= rule.max)
        and (rule.equals is None or value == rule.equals)
        and (rule.one_of is None or value in rule.one_of)
    )
    return None if good else rule.name


def missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    filled = [{"clip_id": f"c{i}", "start_s": 0.0, "end_s": 3.6, **row} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(filled, schema=schema("clips"))


def policy(*rules: dict[str, Any]) -> Policy:
    filled = [
        {"name": f"r{i}", "says": "a sentence", "source": "test", **rule} for i, rule in enumerate(rules)
    ]
    return policy_from({"name": "test", "rules": filled}, where="test")


numbers = st.sampled_from([None, math.nan, -1.5, 0.0, 1.0, 2.0, 1e300, math.inf])
bounds = st.sampled_from([-1.5, 0.0, 1.0, 1.5, 2.0])
clips = st.fixed_dictionaries(
    dict.fromkeys(NUMBERS, numbers) | {"language": st.sampled_from([None, "", "en", "ru", "it's"])}
)
numeric_rule = st.fixed_dictionaries(
    {"column": st.sampled_from(NUMBERS)},
    optional={"min": bounds, "max": bounds, "equals": bounds, "in": st.lists(bounds, min_size=1, max_size=3)},
).filter(lambda rule: len(rule) > 1)
text_rule = st.fixed_dictionaries(
    {"column": st.just("language"), "in": st.lists(st.sampled_from(["en", "it's"]), min_size=1, max_size=2)}
)
conditions = st.tuples(st.sampled_from(NUMBERS), bounds).map(lambda pair: {"when": f"{pair[0]} >= {pair[1]}"})
rules = st.tuples(numeric_rule | text_rule, st.just({}) | conditions).map(lambda pair: pair[0] | pair[1])


@given(st.lists(clips, min_size=1, max_size=12), st.lists(rules, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_compiled_query_equals_naive_evaluator(
    rows: list[dict[str, Any]], chosen: list[dict[str, Any]]
) -> None:
    made = policy(*chosen)
    verdicts = [[naive_verdict(rule, row) for rule in made.rules] for row in rows]
    failures = [[verdict for verdict in row if verdict not in (None, "-")] for row in verdicts]
    judged = sorted(judge(table(rows), made).to_pylist(), key=lambda row: int(row["clip_id"][1:]))
    assert [row["failed_rules"] for row in judged] == failures
    assert [row["reason"] for row in judged] == [failed[0] if failed else "" for failed in failures]
    assert [row["kept"] for row in judged] == [not failed for failed in failures]
    left = list(range(len(rows)))
    for place, line in enumerate(compute_funnel(table(rows), made)):
        fails = [i for i, row in enumerate(verdicts) if row[place] not in (None, "-")]
        first = [i for i in left if i in fails]
        assert (line.clips_in, line.failed_first, line.failed) == (len(left), len(first), len(fails))
        assert math.isclose(line.hours_in, len(left) / 1000)
        assert math.isclose(line.hours_failed_first, len(first) / 1000)
        assert line.missing == sum(str(row[place]).startswith("missing: ") for row in verdicts)
        assert line.not_applied == sum(row[place] == "-" for row in verdicts)
        left = [i for i in left if i not in fails]


def test_expression_over_columns_names_missing_one() -> None:
    made = policy({"sql": "abs(snr_db) > 3 OR luma > 5"}, {"sql": "len(words) > 0"})
    rows: list[dict[str, Any]] = [
        {"snr_db": -4.0, "luma": 0.0, "words": []},
        {"snr_db": math.nan, "luma": 9.0},
        {"snr_db": 1.0, "luma": 1.0},
    ]
    reasons = [row["failed_rules"] for row in judge(table(rows), made).to_pylist()]
    assert reasons == [["r1"], ["missing: snr_db", "missing: words"], ["r0", "missing: words"]]


def test_null_expression_is_missing_not_passed() -> None:
    made = policy({"sql": "try_cast(language AS DOUBLE) > 0"})
    assert judge(table([{"language": "en"}]), made)["reason"].to_pylist() == ["missing: r0"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"column": "sync_confidnce", "min": 1}, "did you mean 'sync_confidence'"),
        ({"sql": "snr > 1"}, "no column 'snr'"),
        ({"column": "snr_db", "minimum": 1}, "did you mean 'min'"),
        ({"column": "snr_db"}, "needs min, max, equals or in"),
        ({"column": "snr_db", "sql": "true"}, "not both"),
        ({"column": "snr_db", "equals": "loud"}, "holds numbers, not text"),
        ({"column": "language", "min": 1}, "holds text"),
        ({"column": "words", "equals": 1}, "is a list"),
        ({"column": "snr_db", "min": math.nan}, "min"),
        ({"sql": "snr_db > "}, "is not SQL"),
        ({"sql": "snr_db > 1) -- "}, "is not SQL"),
        ({"sql": "snr_db > 1); SELECT (1"}, "is not one expression"),
        ({"sql": "snr_db > 1) FROM (SELECT 1"}, "is not one expression"),
        ({"sql": "snr_db > (SELECT 1)"}, "without subqueries"),
        ({"name": "Bad Name", "sql": "true"}, "name"),
    ],
)
def test_invalid_rule_error_is_one_line_with_hint(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        policy(rule)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.kind == "bad-policy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "not YAML"),
        ("just text", "needs `name` and a list of `rules`"),
        ("name: x\nrules: []", "at least one rule"),
        ("name: x\nruels: []\nrules: []", "did you mean 'rules'"),
        ("extends: defualt\nrules: []", "did you mean 'default'"),
        ("extends: default\ndrop: [snrr]\nrules: []", "did you mean 'snr'"),
        (
            "rules: [{name: a, says: x, source: y, sql: 'true'}, {name: a, says: x, source: y, sql: 'true'}]",
            "two rules",
        ),
        ("rules: [3]", "rule number 1"),
    ],
)
def test_invalid_policy_file_error_names_file(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_policy(text, where="mine.yaml")
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_expression_that_cannot_run_is_user_error() -> None:
    with pytest.raises(UserError, match="cannot be evaluated"):
        judge(table([{"language": "en"}]), policy({"sql": "language + 1 > avg(snr_db)"}))


def test_unknown_policy_error_lists_shipped_names() -> None:
    with pytest.raises(UserError, match="default"):
        load_policy("no/such/file.yaml")


def test_policy_extends_replaces_and_drops_shipped_rules() -> None:
    text = """
        name: mine
        extends: default
        drop: [frozen]
        rules:
          - {name: snr, column: snr_db, min: 20, says: quieter, source: mine}
          - {name: sharp, column: sharpness, min: 50, says: sharp, source: mine}
    """
    base, mine = load_policy("default"), parse_policy(text, where="mine")
    names = [rule.name for rule in base.rules if rule.name != "frozen"]
    assert [rule.name for rule in mine.rules] == [*names, "sharp"]
    assert next(rule for rule in mine.rules if rule.name == "snr").min == 20


def test_digest_ignores_says_and_source() -> None:
    one = policy({"column": "snr_db", "min": 8})
    assert one.digest == policy({"column": "snr_db", "min": 8.0, "says": "other words"}).digest
    assert one.digest != policy({"column": "snr_db", "min": 9}).digest


@pytest.mark.parametrize("name", policy_names())
def test_shipped_policy_round_trips_through_document(name: str) -> None:
    shipped = load_policy(name)
    assert policy_from(shipped.document(), where=name) == shipped


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"has_audio": 0.0, "transcript": "", "language": None, "snr_db": None}, "has_audio"),
        ({"transcript": "", "language": ""}, "speech"),
        ({"transcript": "", "language": "", "face_coverage": 0.0, "face_height_px": None}, "face_coverage"),
        ({"language": "ru", "snr_db": 1.0}, "language"),
        ({"language_probability": 0.3}, "language_probability"),
        ({"duration_s": 1.2}, "duration"),
        ({"face_coverage": 0.4}, "face_coverage"),
        ({"face_count": 4.0, "face_coverage": 0.0, "face_height_px": None}, "face_count"),
        ({"face_height_px": 60.0}, "face_height"),
        ({"face_height_px": None}, "missing: face_height_px"),
        ({"face_yaw_deg": 70.0}, "face_yaw"),
        ({"overlap_ratio": 0.5}, "overlap"),
        ({"sync_offset_ms": 400.0, "duration_s": 6.0}, "sync"),
        ({"sync_offset_ms": 400.0, "duration_s": 2.0}, ""),
        ({"sync_offset_ms": 400.0, "sync_confidence": 0.05, "duration_s": 6.0}, ""),
        ({"sync_confidence": None}, "missing: sync_confidence"),
        ({"snr_db": math.nan}, "missing: snr_db"),
        ({"luma": 2.0}, "luma"),
    ],
)
def test_default_policy_gives_expected_reason(make_clip: Any, changes: dict[str, Any], reason: str) -> None:
    judged = judge(table([make_clip("s", 0.0, "a", **changes)]), load_policy("default")).to_pylist()[0]
    assert judged["reason"] == reason
    assert judged["kept"] == (reason == "")


@pytest.mark.parametrize("name", policy_names())
def test_every_shipped_rule_states_its_source(name: str) -> None:
    assert [rule.name for rule in load_policy(name).rules if rule.source == "not stated"] == []


def test_one_line_of_yaml_is_a_complete_rule() -> None:
    rule = "{name: face_height, column: face_height_px, min: 256, says: close}"
    text = f"name: closer\nextends: default\nrules:\n  - {rule}\n"
    policy = parse_policy(text, where="closer.yaml")
    assert {rule.name: rule.min for rule in policy.rules}["face_height"] == 256
    assert len(policy.rules) == len(load_policy("default").rules)


HAND = """
name: mine
extends: default
rules: []
keep: [{clip: c1, who: anna, why: the music is quiet}]
reject: [{clip: c0, who: ben, why: a photograph}]
"""


def test_decisions_by_hand_override_every_rule(make_clip: Any) -> None:
    mine = parse_policy(HAND, where="mine")
    rows = [
        make_clip("s", 2.0 * i, "a", luma=0.0 if i == 1 else 100.0) | {"clip_id": f"c{i}"} for i in range(3)
    ]
    judged = judge(table(rows), mine).to_pylist()
    assert [(row["kept"], row["reason"]) for row in judged] == [
        (False, "rejected-by-hand"),
        (True, ""),
        (True, ""),
    ]
    funnel = compute_funnel(table(rows), mine)
    assert (funnel[0].failed_first, funnel[-1].clips_in - funnel[-1].failed_first) == (1, 2)
    assert policy_from(mine.document(), where="again") == mine
    assert mine.digest != load_policy("default").digest
    other_words = HAND.replace("anna", "eve").replace("a photograph", "still")
    assert parse_policy(other_words, where="mine").digest == mine.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep: [{clip: a, who: x}]", "why"),
        ("keep: yes", "is a list"),
        ("keep: [{clip: a, who: x, why: y}]\nreject: [{clip: a, who: x, why: y}]", "both in"),
        ('reject: [{clip: "a\' OR 1=1", who: x, why: y}]', "clip"),
        ("reject: [{clip: a, who: x, wyh: y}]", "did you mean 'why'"),
    ],
)
def test_invalid_decision_by_hand_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_policy(f"extends: default\nrules: []\n{text}\n", where="mine.yaml")
