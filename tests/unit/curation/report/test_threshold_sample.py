"""Threshold data: comparing codes equals comparing values, and a sample's sums estimate the corpus."""

import base64
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uniavgen.curation.policy.rules import Policy, Rule, policy_from
from uniavgen.curation.policy.verdicts import columns_needed, compute_funnel
from uniavgen.curation.report.threshold_sample import (
    COMPARE,
    PASSES,
    Scale,
    is_movable,
    make_histogram,
    make_threshold_data,
)
from uniavgen.shards.corpus.schema import schema

POLICY = policy_from(
    {
        "name": "mine",
        "rules": [
            {"name": "snr", "column": "snr_db", "min": 8, "says": ""},
            {"name": "luma", "column": "luma", "min": 0.1, "max": 0.7, "says": ""},
            {
                "name": "sync",
                "column": "sync_offset_ms",
                "max": 160,
                "when": "sync_confidence >= 0.5",
                "says": "",
            },
            {"name": "speech", "sql": "transcript <> ''", "says": ""},
            {"name": "language", "column": "language", "in": ["en"], "says": ""},
        ],
    },
    where="test",
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """Clips of 1, 2 and 3 s with the columns that POLICY reads."""
    full = [{"clip_id": f"{i:06d}", "start_s": 0.0, "end_s": 1.0 + i % 3} | row for i, row in enumerate(rows)]
    names = columns_needed(POLICY)
    return pa.Table.from_pylist(full, schema=pa.schema([schema("clips").field(name) for name in names]))


def scales_of(clips: pa.Table) -> dict[str, Scale]:
    lines = {"snr_db": [8.0], "luma": [0.1, 0.7], "sync_offset_ms": [160.0]}
    return {
        name: make_histogram(
            clips[name].to_numpy(zero_copy_only=False).astype(float), np.ones(len(clips), bool), bounds, 9
        )[0]
        for name, bounds in lines.items()
    }


def unpacked(packed: list[str]) -> np.ndarray:
    kinds = {"Uint8Array": "u1", "Uint16Array": "<u2", "Float32Array": "<f4"}
    return np.frombuffer(base64.b64decode(packed[1]), kinds[packed[0]])


def passing(data: dict[str, Any], moves: dict[tuple[str, str], int]) -> np.ndarray:
    """Sampled clips that pass every rule with bounds (rule, min or max) at other positions; naive loop."""
    good = np.ones(data["clips"], bool)
    for rule in data["rules"]:
        states = unpacked(rule["states"]) if rule["states"] else np.full(data["clips"], COMPARE)
        codes = (
            unpacked(data["columns"][rule["column"]]["codes"])
            if rule["column"]
            else np.zeros(data["clips"], int)
        )
        for i in range(data["clips"]):
            if states[i] != COMPARE:
                good[i] &= states[i] == PASSES
                continue
            good[i] &= codes[i] > 0
            for bound, sign in (("min", 1), ("max", -1)):
                if bound in rule:
                    place = 2 * moves.get((rule["name"], bound), rule[bound]) + 2
                    good[i] &= sign * int(codes[i]) >= sign * place
    return good


def moved(rule: Rule, bound: str, value: float) -> Policy:
    rules = [other.model_copy(update={bound: value}) if other is rule else other for other in POLICY.rules]
    return Policy("moved", tuple(rules))


number = st.one_of(
    st.none(), st.just(float("nan")), st.sampled_from([0.1, 0.7, 8.0, 160.0, 0.3, -5.0]), st.floats(-300, 300)
)
row = st.fixed_dictionaries(
    {
        "snr_db": number,
        "luma": st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.1, 0.2, 0.3, 0.6, 0.7])),
        "sync_offset_ms": number,
        "sync_confidence": st.sampled_from([None, 0.2, 0.5, 0.9]),
        "transcript": st.sampled_from([None, "", "a"]),
        "language": st.sampled_from(["en", "de", None]),
    }
)
BOUNDS = [("snr", "min"), ("luma", "min"), ("luma", "max"), ("sync", "max")]
GOOD = {
    "snr_db": 9.0,
    "luma": 0.3,
    "sync_offset_ms": 0.0,
    "sync_confidence": 0.9,
    "transcript": "a",
    "language": "en",
}


@settings(max_examples=12, deadline=None)
@given(st.lists(row, min_size=1, max_size=40), st.sampled_from(BOUNDS), st.floats(0, 1))
@example(
    [GOOD | {"luma": value} for value in (0.1, 0.1 + 1e-16, 0.3, 0.7, 0.30000000000000004)],
    ("luma", "max"),
    0.5,
)
def test_threshold_at_any_position_equals_policy(
    rows: list[dict[str, Any]], which: tuple[str, str], share: float
) -> None:
    clips = table([GOOD, *rows])
    data = make_threshold_data(clips, POLICY, scales_of(clips), limit=len(clips))
    rule = next(rule for rule in POLICY.rules if rule.name == which[0])
    positions = data["columns"][rule.column]["positions"]
    place = round(share * (len(positions) - 1))
    last = compute_funnel(clips, moved(rule, which[1], positions[place]))[-1]
    good = passing(data, {which: place})
    assert good.sum() == last.clips_in - last.failed_first
    hours = unpacked(data["seconds"])[good].sum() / 3600
    assert hours == pytest.approx(last.hours_in - last.hours_failed_first)


def test_only_bounds_on_signals_are_movable() -> None:
    assert [rule.name for rule in POLICY.rules if is_movable(rule)] == ["snr", "luma", "sync"]


@example([0.0, 2.2e-308], [], 2)
@example([1e6, 1e6 + 1e-6], [], 3)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50),
    st.lists(st.floats(-1e6, 1e6), max_size=3),
    st.integers(2, 60),
)
def test_bins_are_equal_complete_and_match_codes(values: list[float], lines: list[float], bins: int) -> None:
    scale, histogram = make_histogram(np.array(values), np.arange(len(values)) % 2 == 0, lines, bins)
    widths = np.diff(scale.edges)
    assert len(widths) <= bins
    assert np.allclose(widths, widths[0], rtol=1e-6)
    assert set(lines) <= set(scale.positions.tolist())
    assert set(scale.edges.tolist()) <= set(scale.positions.tolist())
    assert sum(histogram["passing"]) == (len(values) + 1) // 2
    assert sum(histogram["passing"]) + sum(histogram["failing"]) == histogram["count"] == len(values)
    codes = scale.codes(np.array(values)).astype(int)
    assert [scale.bin_of_code()[code - 1] for code in codes] == scale.bins(np.array(values)).tolist()


def test_unmeasured_signal_has_scale_and_empty_histogram() -> None:
    scale, histogram = make_histogram(np.array([np.nan, np.inf]), np.array([True, False]), [3.0], 8)
    assert (histogram["count"], histogram["missing"], sum(histogram["passing"] + histogram["failing"])) == (
        0,
        2,
        0,
    )
    assert scale.codes(np.array([np.nan, 3.0, np.inf])).tolist()[0] == 0
    assert 3.0 in scale.positions


def test_sample_estimates_yield_at_other_thresholds() -> None:
    rng = np.random.default_rng(0)
    rows = [
        GOOD | {"snr_db": float(snr), "luma": float(luma), "language": "en" if draw < 0.6 else "de"}
        for snr, luma, draw in zip(
            rng.normal(12, 5, 20_000), rng.normal(0.4, 0.2, 20_000), rng.random(20_000), strict=True
        )
    ]
    clips = table(rows)
    data = make_threshold_data(clips, POLICY, scales_of(clips), limit=3000)
    assert 2900 < data["clips"] <= 3000
    assert data["total"] == 20_000
    stratum, strata = unpacked(data["stratum"]), data["strata"]
    weight = np.array([strata[s]["clips"] / strata[s]["sampled"] for s in stratum])
    seconds = unpacked(data["seconds"]) * np.array([strata[s]["seconds"] for s in stratum])
    assert weight.sum() == pytest.approx(20_000)
    assert seconds.sum() / 3600 == pytest.approx(float(np.sum(1.0 + np.arange(20_000) % 3)) / 3600, rel=1e-6)
    now = passing(data, {})
    last = compute_funnel(clips, POLICY)[-1]
    assert weight[now].sum() == pytest.approx(last.clips_in - last.failed_first), (
        "the policy's own yield is exact"
    )
    positions = data["columns"]["snr_db"]["positions"]
    for place in range(0, len(positions), 20):
        truth = compute_funnel(clips, moved(POLICY.rules[0], "min", positions[place]))[-1]
        kept = truth.clips_in - truth.failed_first
        estimate = weight[passing(data, {("snr", "min"): place})].sum()
        assert abs(estimate - kept) < 60 + 0.05 * kept
    alone = [s for s in range(len(POLICY.rules)) if strata[s]["clips"]]
    assert all(strata[s]["sampled"] / strata[s]["clips"] > 0.1 for s in alone), (
        "what one rule rejects is drawn more often"
    )
