"""Metrics of the published networks whose outputs the user computed elsewhere, as `.npz` files.

`panns.npz` and `passt.npz`: real_features, generated_features [n, d], real_logits, generated_logits [n, 527]
of pairs in the same order. `vggish.npz`: real_features, generated_features. `imagebind.npz`: video, audio
[n, 1024], and for the controls real_video, real_audio. `synchformer.npz`: logits [n, ends, 21], and for the
controls real_logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from uniavgen.orchestration.evaluation import distributions, pairing
from uniavgen.orchestration.evaluation.catalog import METRICS
from uniavgen.orchestration.evaluation.statistics import (
    order_of,
    order_of_means,
    score_of,
    set_score,
)
from uniavgen.orchestration.evaluation.summary import MetricScore
from uniavgen.shards.errors import UserError

PAIRED = ("real_features", "generated_features", "real_logits", "generated_logits")
ARRAYS: dict[str, tuple[str, ...]] = {
    "panns": PAIRED,
    "passt": PAIRED,
    "vggish": ("real_features", "generated_features"),
    "imagebind": ("video", "audio", "real_video", "real_audio"),
    "synchformer": ("logits", "real_logits"),
}
"""Arrays of each file; all are needed, since no score is reported without controls."""

NAMES = {"panns": "PANNs", "passt": "PaSST", "vggish": "VGG"}
SHARES = {"real": 0.0, "disturbed": 0.5, "swapped": 1.0}
"""Share of clips that are exchanged, or of the way to noise, at each control level."""


def read_features(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of every file that is there. Raises UserError for none, and for a wrong file."""
    if not folder.is_dir():
        raise UserError("no folder of features here", where=folder, hint="check evaluate.weights.features")
    files = {}
    for name, arrays in ARRAYS.items():
        path = folder / f"{name}.npz"
        if path.is_file():
            files[name] = _read(path, arrays)
    if not files:
        names = ", ".join(f"{name}.npz" for name in ARRAYS)
        raise UserError("the folder has no file of features", where=folder, hint=f"one of: {names}")
    return files


def feature_scores(files: Mapping[str, Mapping[str, np.ndarray]]) -> list[MetricScore]:
    """Scores of every metric that the files give, each with its controls."""
    scores = []
    for file, name in NAMES.items():
        if file in files:
            scores.append(_frechet(f"FD-{name}", files[file]))
    for file in ("panns", "passt"):
        if file in files:
            scores.append(_kl(f"KL-{NAMES[file]}", files[file]))
    if "panns" in files and len(files["panns"]["generated_logits"]) >= distributions.IS_SPLITS:
        scores.append(_inception(files["panns"]))
    if "imagebind" in files:
        scores.append(_imagebind(files["imagebind"]))
    if "synchformer" in files:
        scores.append(_desync(files["synchformer"]))
    return scores


def _frechet(metric: str, arrays: Mapping[str, np.ndarray]) -> MetricScore:
    """Controls: one half of the real clips against the other, which is pulled to noise of its own spread."""
    real, generated = arrays["real_features"], arrays["generated_features"]
    reference, half = real[1::2], real[0::2]
    noise = np.random.default_rng(0).normal(half.mean(), half.std(), half.shape)
    means = {
        level: distributions.frechet_distance((1 - share) * half + share * noise, reference)
        for level, share in SHARES.items()
    }
    score = set_score(generated, lambda rows: distributions.frechet_distance(rows, real), resamples=50)
    return MetricScore(metric, score, order_of_means(means, "lower", len(real)))


def _kl(metric: str, arrays: Mapping[str, np.ndarray]) -> MetricScore:
    """Controls: real clips against themselves, against the mean of two clips, and against another clip."""
    real = arrays["real_logits"]
    other = np.roll(real, 1, axis=0)
    levels = {
        level: distributions.kl_divergence(real, (1 - share) * real + share * other).tolist()
        for level, share in SHARES.items()
    }
    score = score_of(distributions.kl_divergence(real, arrays["generated_logits"]).tolist())
    return MetricScore(metric, score, order_of(levels, METRICS[metric].better))


def _inception(arrays: Mapping[str, np.ndarray]) -> MetricScore:
    """Controls: logits of real clips, pulled half and fully to their mean."""
    real = arrays["real_logits"]
    means = {}
    for level, share in SHARES.items():
        mixed = (1 - share) * real + share * real.mean(axis=0)
        means[level] = (
            distributions.inception_score(mixed) if len(real) >= distributions.IS_SPLITS else np.nan
        )
    score = set_score(arrays["generated_logits"], distributions.inception_score, resamples=50)
    return MetricScore("IS", score, order_of_means(means, "higher", len(real)))


def _imagebind(arrays: Mapping[str, np.ndarray]) -> MetricScore:
    """Controls: real pairs, with the sound of another clip mixed in by half, and fully exchanged."""
    video, audio = arrays["real_video"], arrays["real_audio"]
    other = np.roll(audio, 1, axis=0)
    levels = {
        level: pairing.imagebind_score(video, (1 - share) * audio + share * other).tolist()
        for level, share in SHARES.items()
    }
    score = score_of(pairing.imagebind_score(arrays["video"], arrays["audio"]).tolist())
    return MetricScore("IB-score", score, order_of(levels, "higher"))


def _desync(arrays: Mapping[str, np.ndarray]) -> MetricScore:
    """Controls: real clips, and clips whose classes are moved by three and by eight steps of 0.2 s."""
    real = arrays["real_logits"]
    levels = {
        level: pairing.desync(np.roll(real, steps, axis=-1)).tolist()
        for level, steps in (("real", 0), ("disturbed", 3), ("swapped", 8))
    }
    score = score_of(pairing.desync(arrays["logits"]).tolist())
    return MetricScore("DeSync", score, order_of(levels, "lower"))


def _read(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name], np.float64) for name in names}
    except (OSError, ValueError, KeyError, EOFError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"the features cannot be read: {first}", where=path, hint=f"arrays: {', '.join(names)}"
        ) from error
    for name, array in arrays.items():
        if len(array) < 2 or not np.isfinite(array).all():
            raise UserError(f"{name} has under 2 rows or NaN", where=path, hint="compute the features again")
    for one, two in (("real_logits", "generated_logits"), ("video", "audio"), ("real_video", "real_audio")):
        if one in arrays and two in arrays and arrays[one].shape != arrays[two].shape:
            raise UserError(
                f"{one} and {two} have other shapes", where=path, hint="give pairs in the same order"
            )
    return arrays
