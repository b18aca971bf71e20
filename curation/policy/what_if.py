"""Questions about a policy that write nothing: what would another threshold keep, why was this clip decided so, and to
which threshold is the yield sensitive.

In: a corpus with clips, a policy. Out: numbers in clips and in hours. Every question is one or a few DuckDB queries over
the columns that the rules read.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniavgen.curation.policy.rules import FunnelRow, Policy, Rule, columns_needed, funnel, judge
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

BOUNDS = ("min", "max", "equals")
"""What `--what-if` may set, besides a bare threshold."""


@dataclass(frozen=True)
class Yield:
    """What a policy keeps."""

    clips: int
    hours: float


@dataclass(frozen=True)
class Answer:
    """What changes when thresholds change: the yield before and after, and both funnels, rule by rule."""

    policy: str
    before: Yield
    after: Yield
    funnel_before: list[FunnelRow]
    funnel_after: list[FunnelRow]


@dataclass(frozen=True)
class Sensitivity:
    """How the yield follows one bound of one rule, all other rules as they are.

    `thresholds` [n] rise; `clips` [n] and `hours` [n] are what would be kept at each. `clips_now` is kept today;
    `gain` is the share of clips that the rule alone takes away: what dropping it would add, over `clips_now`.
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
    """The columns of the clips table that a policy reads. Raises UserError (no-clips) where there are no clips."""
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
    """The policy with other bounds: `NAME=VALUE` or `NAME.min=VALUE`, NAME a rule or the column of exactly one rule.

    Without `.min`, `.max` or `.equals` the rule must have one bound only. Raises UserError (bad-policy) naming the nearest
    known rule for an unknown one, and for a value that is no number.
    """
    rules = list(policy.rules)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise _bad(f"--what-if takes NAME=VALUE, got {assignment!r}", "for example --what-if snr=10")
        name, _, bound = key.strip().partition(".")
        place = _place(rules, name)
        rules[place] = _rebound(rules[place], bound, text.strip())
    return Policy(policy.name, tuple(rules))


def what_if(corpus: Corpus, policy: Policy, assignments: Sequence[str] = ()) -> Answer:
    """What the policy would keep with other thresholds (see `with_thresholds`), beside what it keeps as it is."""
    other = with_thresholds(policy, assignments)
    clips = clips_for(corpus, other)
    before, after = funnel(clips, policy), funnel(clips, other)
    return Answer(policy.name, _yield(clips, before), _yield(clips, after), before, after)


def explain(corpus: Corpus, policy: Policy, clip_id: str) -> list[dict[str, Any]]:
    """Every rule for one clip: `rule`, `says`, `source`, `verdict` (passed, failed, missing, not applied), `values`.

    Raises UserError (no-such-clip) where the clip is unknown; the beginning of an id is enough where it is unique.
    """
    import pyarrow.compute as pc

    clips = corpus.read("clips", columns=columns_needed(policy))
    clips = clips.filter(pc.starts_with(clips["clip_id"], pattern=clip_id))
    if len(clips) != 1:
        what = f"{len(clips)} clips begin with this id" if len(clips) else "no such clip"
        raise UserError(
            what, where=clip_id, hint="take a clip_id from the report or the clips table", kind="no-such-clip"
        )
    values = clips.to_pylist()[0]
    told = []
    for row, rule in zip(funnel(clips, policy), policy.rules, strict=True):
        verdict = (
            "missing"
            if row.missing
            else "not applied"
            if row.not_applied
            else "failed"
            if row.failed
            else "passed"
        )
        needed = columns_needed(Policy(policy.name, (rule,)))
        shown = {name: values[name] for name in needed if name not in ("clip_id", "start_s", "end_s")}
        told.append(
            {"rule": rule.name, "says": rule.says, "source": rule.source, "verdict": verdict, "values": shown}
        )
    return told


def sensitivity(clips: pa.Table, policy: Policy, steps: int = 16) -> list[Sensitivity]:
    """For every bound of every rule on a number column: the yield at `steps` thresholds across the middle 98 % of the
    values, all other rules held. Sorted by `gain`, the costliest rule first."""
    import numpy as np
    import pyarrow.compute as pc

    verdicts = judge(clips, policy)
    single = pc.if_else(pc.equal(pc.list_value_length(verdicts["failed_rules"]), 1), verdicts["reason"], "")
    kept = verdicts["kept"].to_numpy(zero_copy_only=False)
    hours = (clips["end_s"].to_numpy() - clips["start_s"].to_numpy()) / 3600
    found = []
    for rule in policy.rules:
        bounds = [name for name in ("min", "max") if getattr(rule, name) is not None]
        if not rule.column or not bounds:
            continue
        values = clips[rule.column].to_numpy(zero_copy_only=False).astype(np.float64)
        alone = pc.equal(single, rule.name).to_numpy(zero_copy_only=False)
        applies = _applies(clips, rule)
        exempt = kept & ~applies  # `when` leaves them out, whatever the threshold
        for bound in bounds:
            threshold = getattr(rule, bound)
            grid = _grid(values[np.isfinite(values) & applies], threshold, steps)
            # a kept clip, and one that this rule alone rejects, follow its threshold and nothing else
            passing = [
                exempt | (((kept & applies) | alone) & _within(values, rule, bound, at)) for at in grid
            ]
            found.append(
                Sensitivity(
                    rule.name,
                    rule.column,
                    bound,
                    threshold,
                    grid.tolist(),
                    [int(chosen.sum()) for chosen in passing],
                    [float(hours[chosen].sum()) for chosen in passing],
                    int(kept.sum()),
                    float(alone.sum() / max(1, kept.sum())),
                )
            )
    return sorted(found, key=lambda row: (-row.gain, row.rule, row.bound))


def _within(values: Any, rule: Rule, bound: str, at: float) -> Any:
    """Which values stand within the rule's bounds when one of them is moved to `at`; NaN never does."""
    import math

    low = at if bound == "min" else -math.inf if rule.min is None else rule.min
    high = at if bound == "max" else math.inf if rule.max is None else rule.max
    return (values >= low) & (values <= high)


def _applies(clips: pa.Table, rule: Rule) -> Any:
    """Where a rule is asked at all, bool [n]."""
    import duckdb
    import numpy as np

    if not rule.when:
        return np.ones(len(clips), bool)
    with duckdb.connect() as connection:
        connection.register("clips", clips)
        asked = connection.sql(
            f"SELECT coalesce(({rule.when}\n), false) AS asked FROM clips"
        ).to_arrow_table()
    return asked["asked"].to_numpy(zero_copy_only=False)


def _grid(values: Any, threshold: float, steps: int) -> Any:
    import numpy as np

    if not len(values):
        return np.array([threshold])
    low, high = np.percentile(values, [1, 99])
    return np.unique(np.append(np.linspace(low, high, steps - 1), threshold))


def _place(rules: list[Rule], name: str) -> int:
    """Index of the rule with this name, else of the only rule on this column."""
    by_name = [i for i, rule in enumerate(rules) if rule.name == name]
    by_column = [i for i, rule in enumerate(rules) if rule.column == name]
    if by_name or len(by_column) == 1:
        return (by_name or by_column)[0]
    if by_column:
        raise _bad(
            f"several rules judge {name!r}", f"name one of: {', '.join(rules[i].name for i in by_column)}"
        )
    known = [rule.name for rule in rules] + [rule.column for rule in rules if rule.column]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise _bad(
        f"no rule {name!r}",
        f"did you mean {near[0]!r}?" if near else f"known: {', '.join(r.name for r in rules)}",
    )


def _rebound(rule: Rule, bound: str, text: str) -> Rule:
    has = [name for name in BOUNDS if getattr(rule, name) is not None]
    if not bound and len(has) != 1:
        raise _bad(
            f"rule {rule.name} has {'several bounds' if has else 'no number to set'}",
            f"say {rule.name}.min or .max",
        )
    bound = bound or has[0]
    if bound not in BOUNDS or rule.sql or not rule.column:
        raise _bad(
            f"rule {rule.name} has no bound {bound!r}",
            f"say one of: {', '.join(has) or 'none: it is an expression'}",
        )
    try:
        return rule.model_copy(update={bound: float(text)})
    except ValueError as error:
        raise _bad(f"{text!r} is no number", f"for example {rule.name}=1.5") from error


def _yield(clips: pa.Table, rows: list[FunnelRow]) -> Yield:
    """What the funnel leaves at its end."""
    last = rows[-1]
    return Yield(last.clips_in - last.failed_first, last.hours_in - last.hours_failed_first)


def _bad(what: str, hint: str) -> UserError:
    return UserError(what, where="--what-if", hint=hint, kind="bad-policy")
