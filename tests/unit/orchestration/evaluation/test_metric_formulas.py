"""Formulas of the metrics against scipy, torch and worked examples; no network is loaded."""

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import entropy
from torch.nn.functional import cosine_similarity, kl_div

from uniavgen.orchestration.evaluation import controls, distributions, pairing, picture
from uniavgen.orchestration.evaluation.picture import rbf_decision, read_svm
from uniavgen.orchestration.evaluation.words import word_errors

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (40, 7))
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=8)


def test_frechet_distance_equals_scipys_square_root() -> None:
    first, second = RNG.normal(0, 1, (60, 5)), RNG.normal(1, 2, (80, 5)) @ RNG.normal(0, 1, (5, 5))
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    gap = first.mean(0) - second.mean(0)
    expected = gap @ gap + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert distributions.frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_one_dimension_by_hand() -> None:
    # means 1 and 4, variances 2 and 2: (1 - 4)^2 + 2 + 2 - 2 * 2 = 9
    assert distributions.frechet_distance(
        np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])
    ) == pytest.approx(9)


def test_frechet_distance_is_zero_to_itself_with_fewer_clips_than_dimensions() -> None:
    few = RNG.normal(0, 1, (6, 192))
    assert distributions.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_kl_is_from_real_to_generated() -> None:
    generated = RNG.normal(0, 2, (40, 7))
    expected = kl_div(
        torch.tensor(generated).log_softmax(-1), torch.tensor(LOGITS).softmax(-1), reduction="none"
    ).sum(-1)
    assert distributions.kl_divergence(LOGITS, generated) == pytest.approx(expected.numpy())


def test_inception_score_equals_scipys_entropies() -> None:
    probabilities = torch.tensor(LOGITS).softmax(-1).numpy()[np.random.RandomState(2020).permutation(40)]
    parts = [
        np.exp(np.mean([entropy(row, part.mean(0)) for row in part])) for part in np.split(probabilities, 10)
    ]
    assert distributions.inception_score(LOGITS) == pytest.approx(np.mean(parts))


def test_inception_score_of_certain_and_even_classes_is_their_number() -> None:
    certain = np.tile(np.eye(4) * 100, (10, 1))
    assert distributions.inception_score(certain, splits=1) == pytest.approx(4)


def test_mel_filters_equal_torchaudios() -> None:
    from torchaudio.functional import melscale_fbanks

    # the HTK scale with natural logarithm: 1127 ln(1 + f / 700) = 2595 log10(1 + f / 700)
    expected = melscale_fbanks(257, 125.0, 7500.0, 64, 16_000, norm=None, mel_scale="htk").numpy()
    ours = distributions.mel_filters()
    assert ours.shape == expected.shape
    # triangles in mel, not in hertz: the same centres
    assert np.abs(ours.argmax(0) - expected.argmax(0)).max() <= 1


def test_mel_statistics_follow_level() -> None:
    pcm = RNG.normal(0, 300, 16_000).astype(np.int16)
    quiet, loud = distributions.mel_statistics(pcm), distributions.mel_statistics(pcm * 8)
    assert quiet is not None
    assert loud is not None
    assert (loud[:64] > quiet[:64]).all()
    assert distributions.mel_statistics(pcm[:1000]) is None


def test_imagebind_score_is_cosine_times_100() -> None:
    video, audio = RNG.normal(0, 1, (2, 9, 1024))
    expected = 100 * cosine_similarity(torch.tensor(video), torch.tensor(audio))
    assert pairing.imagebind_score(video, audio) == pytest.approx(expected.numpy())


def test_desync_takes_the_absolute_offset_of_each_end_before_the_mean() -> None:
    logits = np.zeros((1, 2, 21))
    logits[0, 0, 5], logits[0, 1, 15] = 1, 1  # -1.0 s and +1.0 s
    assert pairing.desync(logits) == pytest.approx([1.0])


def test_desync_of_chance_is_about_one_second() -> None:
    assert pairing.desync(RNG.normal(0, 1, (20_000, 2, 21))).mean() == pytest.approx(22 / 21, abs=0.01)


def test_pair_scorer_finds_a_shared_cause_and_nothing_in_unrelated_pairs() -> None:
    from uniavgen.orchestration.evaluation.statistics import matched_auc

    cause = RNG.normal(0, 1, (400, 3))
    voices = cause @ RNG.normal(0, 1, (3, 20)) + RNG.normal(0, 0.5, (400, 20))
    faces = cause @ RNG.normal(0, 1, (3, 12)) + RNG.normal(0, 0.5, (400, 12))
    scorer = pairing.fit_pair_scorer(voices[:300], faces[:300])

    def auc(held_out: np.ndarray) -> float:
        return matched_auc(
            scorer.score(voices[300:], held_out), scorer.score(voices[300:], np.roll(held_out, 1, axis=0))
        )

    assert auc(faces[300:]) > 0.9
    assert auc(RNG.permutation(faces[300:])) == pytest.approx(0.5, abs=0.12)


def test_subject_consistency_of_turning_vectors_by_hand() -> None:
    turned = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    # frame 1: cosines 0 and 0; frame 2: 0 to the frame before, -1 (counted as 0) to the first
    assert picture.subject_consistency(turned) == pytest.approx([0.0, 0.0])
    half = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    assert picture.subject_consistency(half) == pytest.approx([0.5**0.5, (0.5**0.5 + 1) / 2])


def test_fastest_motion_is_the_mean_of_the_top_twentieth() -> None:
    flow = np.zeros((10, 10, 2))
    flow[0, :5] = (3.0, 4.0)
    assert picture.fastest_motion(flow) == pytest.approx(5.0)


@pytest.mark.parametrize(("moving", "expected"), [(3, False), (4, True)])
def test_sixteen_frames_are_dynamic_if_four_pairs_move(moving: int, expected: bool) -> None:
    motions = [6.1] * moving + [5.9] * (15 - moving)
    assert picture.is_dynamic(motions, 256, 512) is expected
    assert picture.is_dynamic(motions, 512, 512) is False  # the limit is 12 px there


@pytest.mark.parametrize(("fps", "step"), [(8, 1), (16, 2), (24, 3), (25, 3), (30, 4), (5, 1)])
def test_dynamic_degree_thins_frames_to_8_fps(fps: float, step: int) -> None:
    assert picture.thinned(20, fps).tolist() == list(range(0, 20, step))


def test_dis_flow_sees_a_shift_of_four_pixels() -> None:
    import cv2

    noise = cv2.GaussianBlur(RNG.integers(0, 255, (96, 128, 3)).astype(np.uint8), (0, 0), 3)
    (flow,) = picture.dis_flows(np.stack([noise, np.roll(noise, 4, axis=1)]))
    assert np.median(flow[16:-16, 16:-16], axis=(0, 1)) == pytest.approx([4, 0], abs=0.2)


@pytest.mark.parametrize("snr_db", [0, 20])
def test_noise_has_the_given_level(snr_db: float) -> None:
    pcm = (3000 * np.sin(np.arange(16_000) / 9)).astype(np.int16)
    noise = controls.with_noise(pcm, snr_db).astype(float) - pcm
    assert 20 * np.log10(pcm.astype(float).std() / noise.std()) == pytest.approx(snr_db, abs=0.3)


@pytest.mark.parametrize(
    ("given_text", "heard", "counts"),
    [
        ("Bin blue at F two now.", "bin blue at f two now", (0, 0, 0, 6)),
        ("bin blue at f two now", "been blue f two now please", (1, 1, 1, 6)),
        ("one two", "", (0, 2, 0, 2)),
        ("don't", "dont", (0, 0, 0, 1)),
    ],
)
def test_word_errors_of_worked_examples(given_text: str, heard: str, counts: tuple[int, ...]) -> None:
    errors = word_errors(given_text, heard)
    assert errors is not None
    assert (errors.substitutions, errors.deletions, errors.insertions, errors.words) == counts


def test_no_given_words_have_no_rate() -> None:
    assert word_errors(" ... ", "hello") is None


@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS)
def test_word_error_rate_is_the_edit_distance_over_words(given_words: list[str], heard: list[str]) -> None:
    errors = word_errors(" ".join(given_words), " ".join(heard))
    assert errors is not None
    table = list(range(len(heard) + 1))
    for i, word in enumerate(given_words, start=1):
        previous, table[0] = table[0], i
        for j, other in enumerate(heard, start=1):
            previous, table[j] = table[j], min(table[j] + 1, table[j - 1] + 1, previous + (word != other))
    assert errors.rate == pytest.approx(table[-1] / len(given_words))
    assert errors.rate == pytest.approx(jiwer.wer(" ".join(given_words), " ".join(heard)))


def test_svm_decision_equals_scikit_learns(tmp_path) -> None:
    from sklearn.svm import SVR

    rows, targets = RNG.uniform(-1, 1, (50, 36)), RNG.normal(40, 20, 50)
    model = SVR(gamma=0.05, C=100).fit(rows, targets)
    vectors = "".join(
        f"{coefficient} " + " ".join(f"{i + 1}:{value}" for i, value in enumerate(vector)) + "\n"
        for coefficient, vector in zip(model.dual_coef_[0], model.support_vectors_, strict=True)
    )
    path = tmp_path / "svm.txt"
    path.write_text(f"svm_type epsilon_svr\ngamma 0.05\nrho {-model.intercept_[0]}\nSV\n{vectors}")
    gamma, rho, coefficients, support = read_svm(path)
    got = [rbf_decision(row, support, coefficients, gamma, rho) for row in rows[:5]]
    assert got == pytest.approx(model.predict(rows[:5]))


def test_tc_face_is_high_for_real_pairs_and_chance_for_exchanged_ones() -> None:
    from uniavgen.orchestration.evaluation.face_voice import face_voice_score, training_pairs
    from uniavgen.orchestration.evaluation.results import GENERATED, Result

    rng = np.random.default_rng(5)
    to_voice, to_face = rng.normal(0, 1, (3, 6)), rng.normal(0, 1, (3, 4))

    def people(count: int) -> tuple[np.ndarray, np.ndarray]:
        cause = rng.normal(0, 1, (count, 3))
        return cause @ to_voice + rng.normal(0, 0.3, (count, 6)), cause @ to_face + rng.normal(
            0, 0.3, (count, 4)
        )

    rows = [
        {"split": "train", "person": str(n), "voice": voice.tolist(), "face": face.tolist()}
        for n, (voice, face) in enumerate(zip(*people(60), strict=True))
    ]
    training = training_pairs(rows, held_out={"0"})
    assert training.shape == (59, 10)
    voices, faces = people(20)
    results = []
    for level, shown in (("real", faces), (GENERATED, rng.permutation(faces))):
        for n in range(20):
            vectors = {"voice": voices[n].tolist(), "face": shown[n].tolist()}
            results.append(Result(f"{level}{n}", str(n), level, "voice", vectors=vectors))
    score, _ = face_voice_score(results, training, 6)
    assert score is not None
    assert score.order.holds
    assert score.order.means["real"] > 0.85
    assert score.score.value == pytest.approx(0.5, abs=0.2)
    assert "16 are needed" in face_voice_score(results, training[:9], 6)[1]
    nobody = training_pairs(rows, held_out={row["person"] for row in rows})
    assert "has 0 other persons" in face_voice_score(results, nobody, 6)[1]
