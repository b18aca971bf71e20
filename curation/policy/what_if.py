"""Answer questions about a policy without writing anything.

`what_if`: what other thresholds would keep. `explain`: every rule's verdict on one clip. `sensitivity`: the
yield at other values of each threshold. All read only the columns that the rules read.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from uniavgen.curation.policy.rules import Policy, Rule
from uniavgen.curation.policy.verdicts import FunnelRow, columns_needed, compute_funnel, judge
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BOUNDS = ("min", "max", "equals")
"""Bounds that `--what-if` can set."""


@dataclass(frozen=True)
class Yield:
    """What a policy keeps."""

    clips: int
    hours: float


@dataclass(frozen=True)
class Answer:
    """Yield and funnel before and after thresholds change."""

    policy: str
    before: Yield
    after: Yield
    funnel_before: list[FunnelRow]
    funnel_after: list[FunnelRow]


@dataclass(frozen=True)
class Sensitivity:
    """The yield as one bound of one rule changes, with all other rules as they are.

    `thresholds` [n] rise; `clips` [n] and `hours` [n] would be kept at each. `clips_now` clips are kept
    today. `gain` is the number of clips that this rule alone rejects, as a share of `clips_now`.
    """

    rule: str
    column: str
    bound: str
    threshold: float
    thresholds: list[float]
    clips: list[int]
    hours: list[float]
    clips_now: int
    gain: float


def clips_for(corpus: Corpus, policy: Policy) -> pa.Table:
    """The columns of the clips table that a policy reads.

    Raises UserError (`no-clips`) if there are no clips.
    """
    clips = corpus.read("clips", columns=columns_needed(policy))
    if not len(clips):
        raise UserError(
            "the corpus has no clips",
            where=corpus.root,
            hint="ingest videos first: uniavgen ingest",
            kind="no-clips",
        )
    return clips


def with_thresholds(policy: Policy, assignments: Sequence[str]) -> Policy:
    """The policy with other bounds: `NAME=VALUE` or `NAME.min=VALUE`, NAME a rule or the column of exactly
    one rule.

    Without `.min`, `.max` or `.equals` the rule must have exactly one bound. Raises UserError (`bad-policy`)
    for an unknown name (with the nearest known one) and for a value that is not a number.
    """
    rules = list(policy.rules)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise _bad_question(
                f"--what-if takes NAME=VALUE, got {assignment!r}", "for example --what-if snr=10"
            )
        name, _, bound = key.strip().partition(".")
        index = _rule_index(rules, name)
        rules[index] = _set_bound(rules[index], bound, value.strip())
    return replace(policy, rules=tuple(rules))


def what_if(corpus: Corpus, policy: Policy, assignments: Sequence[str] = ()) -> Answer:
    """What the policy would keep with other thresholds (see `with_thresholds`) and what it keeps as it is."""
    changed = with_thresholds(policy, assignments)
    clips = clips_for(corpus, changed)
    before, after = compute_funnel(clips, policy), compute_funnel(clips, changed)
    return Answer(policy.name, _yield(before), _yield(after), before, after)


def explain(corpus: Corpus, policy: Policy, clip_id: str) -> list[dict[str, Any]]:
    """Every rule for one clip: `rule`, `says`, `source`, `verdict` (passed, failed, missing, not applied),
    `values`.

    A unique prefix of the id is enough. Raises UserError (`no-such-clip`) if it matches no clip or several.
    """
    import pyarrow.compute as pc

    clips = corpus.read("clips", columns=columns_needed(policy))
    clips = clips.filter(pc.starts_with(clips["clip_id"], pattern=clip_id))
    if len(clips) != 1:
        what = f"{len(clips)} clips begin with this id" if len(clips) else "no such clip"
        raise UserError(
            what, where=clip_id, hint="take a clip_id from the report or the clips table", kind="no-such-clip"
        )
    clip = clips.to_pylist()[0]
    explained = []
    for row, rule in zip(compute_funnel(clips, policy), policy.rules, strict=True):
        columns = columns_needed(replace(policy, rules=(rule,)))
        values = {name: clip[name] for name in columns if name not in ("clip_id", "start_s", "end_s")}
        explained.append(
            {
                "rule": rule.name,
                "says": rule.says,
                "source": rule.source,
                "verdict": _verdict(row),
                "values": values,
            }
        )
    return explained


def sensitivity(clips: pa.Table, policy: Policy, steps: int = 16) -> list[Sensitivity]:
    """The yield at `steps` thresholds of every bound on a number column, across the middle 98 % of its
    values.

    All other rules are held. Sorted by `gain`, the rule that rejects most alone first.
    """
    import numpy as np
    import pyarrow.compute as pc

    verdicts = judge(clips, policy)
    only_reason = pc.if_else(
        pc.equal(pc.list_value_length(verdicts["failed_rules"]), 1), verdicts["reason"], ""
    )
    kept = verdicts["kept"].to_numpy(zero_copy_only=False)
    hours = (clips["end_s"].to_numpy() - clips["start_s"].to_numpy()) / 3600
    rows = []
    for rule in policy.rules:
        bounds = [name for name in ("min", "max") if getattr(rule, name) is not None]
        if not rule.column or not bounds:
            continue
        values = clips[rule.column].to_numpy(zero_copy_only=False).astype(np.float64)
        rejected_alone = pc.equal(only_reason, rule.name).to_numpy(zero_copy_only=False)
        applies = _applies(clips, rule)
        exempt = kept & ~applies  # `when` exempts them at every threshold
        for bound in bounds:
            threshold = getattr(rule, bound)
            grid = _grid(values[np.isfinite(values) & applies], threshold, steps)
            # only kept clips and clips that this rule alone rejects depend on its threshold
            passing = [
                exempt | (((kept & applies) | rejected_alone) & _within(values, rule, bound, value))
                for value in grid
            ]
            rows.append(
                Sensitivity(
                    rule.name,
                    rule.column,
                    bound,
                    threshold,
                    grid.tolist(),
                    [int(passes.sum()) for passes in passing],
                    [float(hours[passes].sum()) for passes in passing],
                    int(kept.sum()),
                    float(rejected_alone.sum() / max(1, kept.sum())),
                )
            )
    return sorted(rows, key=lambda row: (-row.gain, row.rule, row.bound))


def _verdict(row: FunnelRow) -> str:
    """The verdict in a funnel over a single clip."""
    if row.missing:
        return "missing"
    if row.not_applied:
        return "not applied"
    return "failed" if row.failed else "passed"


def _within(values: np.ndarray, rule: Rule, bound: str, threshold: float) -> np.ndarray:
    """bool [n]: values within the rule's bounds with `bound` moved to `threshold`; False for NaN."""
    low = threshold if bound == "min" else -math.inf if rule.min is None else rule.min
    high = threshold if bound == "max" else math.inf if rule.max is None else rule.max
    within: np.ndarray = (values >= low) & (values <= high)
    return within


def _applies(clips: pa.Table, rule: Rule) -> np.ndarray:
    """bool [n]: whether the rule's `when` is true."""
    import duckdb
    import numpy as np

    if not rule.when:
        return np.ones(len(clips), bool)
    with duckdb.connect() as connection:
        connection.register("clips", clips)
        table = connection.sql(
            f"SELECT coalesce(({rule.when}\n), false) AS applies FROM clips"
        ).to_arrow_table()
    applies: np.ndarray = table["applies"].to_numpy(zero_copy_only=False)
    return applies


def _grid(values: np.ndarray, threshold: float, steps: int) -> np.ndarray:
    import numpy as np

    if not len(values):
        return np.array([threshold])
    low, high = np.percentile(values, [1, 99])
    return np.unique(np.append(np.linspace(low, high, steps - 1), threshold))


def _rule_index(rules: list[Rule], name: str) -> int:
    """Index of the rule with this name, else of the only rule on this column."""
    by_name = [i for i, rule in enumerate(rules) if rule.name == name]
    by_column = [i for i, rule in enumerate(rules) if rule.column == name]
    if by_name or len(by_column) == 1:
        return (by_name or by_column)[0]
    if by_column:
        names = ", ".join(rules[i].name for i in by_column)
        raise _bad_question(f"several rules judge {name!r}", f"name one of: {names}")
    known = [rule.name for rule in rules] + [rule.column for rule in rules if rule.column]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise _bad_question(
        f"no rule {name!r}",
        f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(r.name for r in rules)}",
    )


def _set_bound(rule: Rule, bound: str, value: str) -> Rule:
    bounds = [name for name in BOUNDS if getattr(rule, name) is not None]
    if not bound and len(bounds) != 1:
        raise _bad_question(
            f"rule {rule.name} has {'several bounds' if bounds else 'no number to set'}",
            f"say {rule.name}.min or .max",
        )
    bound = bound or bounds[0]
    if bound not in BOUNDS or rule.sql or not rule.column:
        raise _bad_question(
            f"rule {rule.name} has no bound {bound!r}",
            f"name one of: {', '.join(bounds) or 'none: it is an expression'}",
        )
    try:
        return rule.model_copy(update={bound: float(value)})
    except ValueError as error:
        raise _bad_question(f"{value!r} is not a number", f"for example {rule.name}=1.5") from error


def _yield(funnel: list[FunnelRow]) -> Yield:
    """Clips and hours that the last rule leaves."""
    last = funnel[-1]
    return Yield(last.clips_in - last.failed_first, last.hours_in - last.hours_failed_first)


def _bad_question(what: str, hint: str) -> UserError:
    return UserError(what, where="--what-if", hint=hint, kind="bad-policy")
