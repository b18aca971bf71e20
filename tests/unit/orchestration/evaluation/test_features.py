"""Scores of published networks from features that the user gives, with controls that a wrong file fails."""

from pathlib import Path

import numpy as np
import pytest

from uniavgen.orchestration.evaluation.catalog import METRICS
from uniavgen.orchestration.evaluation.distributions import frechet_distance, kl_divergence
from uniavgen.orchestration.evaluation.features import feature_scores, read_features
from uniavgen.orchestration.evaluation.summary import MetricScore
from uniavgen.shards.errors import UserError

RNG = np.random.default_rng(3)
CLIPS = 60


def arrays() -> dict[str, dict[str, np.ndarray]]:
    """Features of every network: generated clips are real ones with noise; each clip has its own class."""
    features = RNG.normal(0, 1, (CLIPS, 6)) * np.arange(1, 7) + 2
    logits = 6 * np.eye(8)[RNG.integers(8, size=CLIPS)] + RNG.normal(0, 0.3, (CLIPS, 8))
    paired = {
        "real_features": features,
        "generated_features": features + RNG.normal(0, 0.5, features.shape),
        "real_logits": logits,
        "generated_logits": logits + RNG.normal(0, 1, logits.shape),
    }
    shared = RNG.normal(0, 1, (CLIPS, 32))
    offsets = np.zeros((CLIPS, 2, 21))
    offsets[:, :, 10] = 5
    late = np.roll(offsets, 2, axis=-1)
    return {
        "panns": paired,
        "passt": paired,
        "vggish": {name: paired[name] for name in ("real_features", "generated_features")},
        "imagebind": {
            "video": shared,
            "audio": shared + RNG.normal(0, 2, shared.shape),
            "real_video": shared,
            "real_audio": shared + RNG.normal(0, 1, shared.shape),
        },
        "synchformer": {"logits": late, "real_logits": offsets},
    }


def write(folder: Path, files: dict[str, dict[str, np.ndarray]]) -> Path:
    for name, content in files.items():
        np.savez(folder / f"{name}.npz", **content)
    return folder


def scored(folder: Path) -> dict[str, MetricScore]:
    return {score.metric: score for score in feature_scores(read_features(folder))}


def test_every_published_metric_of_features_is_scored_with_ordered_controls(tmp_path: Path) -> None:
    files = arrays()
    scores = scored(write(tmp_path, files))
    assert set(scores) == {name for name, spec in METRICS.items() if spec.needs == "features"}
    assert {name: score.order.why for name, score in scores.items() if not score.reported} == {}
    panns = files["panns"]
    assert scores["FD-PANNs"].score.value == pytest.approx(
        frechet_distance(panns["real_features"], panns["generated_features"])
    )
    expected = kl_divergence(panns["real_logits"], panns["generated_logits"]).mean()
    assert scores["KL-PaSST"].score.value == pytest.approx(expected)
    assert scores["DeSync"].score.value == pytest.approx(0.4)
    assert {score.score.count for score in scores.values()} == {CLIPS}


def test_network_that_does_not_tell_pairs_apart_is_not_reported(tmp_path: Path) -> None:
    files = arrays()
    blind = {"imagebind": {**files["imagebind"], "real_audio": RNG.normal(0, 1, (CLIPS, 32))}}
    score = scored(write(tmp_path, blind))["IB-score"]
    assert not score.reported
    assert score.as_dict()["score"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"real_features": np.ones((3, 2))}, "generated_features"),
        ({"real_features": np.ones((1, 2)), "generated_features": np.ones((3, 2))}, "under 2 rows"),
        ({"real_features": np.full((3, 2), np.nan), "generated_features": np.ones((3, 2))}, "NaN"),
    ],
)
def test_wrong_file_is_one_line(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    write(tmp_path, {"vggish": content})
    with pytest.raises(UserError, match=message) as caught:
        read_features(tmp_path)
    assert "vggish.npz" in str(caught.value)


def test_pairs_of_other_counts_and_damaged_files_are_refused(tmp_path: Path) -> None:
    files = arrays()["imagebind"]
    write(tmp_path, {"imagebind": {**files, "audio": files["audio"][:-1]}})
    with pytest.raises(UserError, match="other shapes"):
        read_features(tmp_path)
    (tmp_path / "imagebind.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="cannot be read"):
        read_features(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        read_features(tmp_path / "absent")
