"""Ten real videos: each becomes a source row with plausible clips and media of the right length.

Three of them are measured first, as a forecast for the others, which is then compared with what was measured.
"""

from pathlib import Path
from typing import Any

import pytest
import soundfile
from paths import MEDIA

from uniavgen.ingest.config import CutConfig
from uniavgen.orchestration.commands.ingest import forecast_corpus, ingest_corpus
from uniavgen.orchestration.config import Config
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.sample import FaceTrack, decode_video
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MEDIA.is_dir(), reason=f"the development videos are not here ({MEDIA})"),
]

SPEAKING = [
    "address_english_mpeg4",
    "closeup_english",
    "studio_english_16khz",
    "interview_english_30fps_hevc",
]
SILENT = ["cartoon_no_audio", "multi_shot_no_audio"]


SAMPLED = 3

Ingested = tuple[Corpus, dict[str, Any], dict[str, Any]]
"""The corpus, what the forecast returned, and what the ingest of the rest returned."""


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    folder = tmp_path_factory.mktemp("media")
    settings = Config()
    settings.tracking.folder = str(folder / "mlflow")
    sampled = forecast_corpus([str(MEDIA)], folder / "corpus", settings, SAMPLED)
    rest = ingest_corpus([str(MEDIA)], folder / "corpus", settings)
    return Corpus.open(folder / "corpus"), sampled, rest


@pytest.fixture(scope="module")
def clips(ingested: Ingested) -> dict[str, list[dict[str, Any]]]:
    """Clip rows by the stem of their video's name, in order of time."""
    rows = (
        ingested[0]
        .query("SELECT s.uri, c.* FROM clips c JOIN sources s USING (source_id) ORDER BY s.uri, c.start_s")
        .to_pylist()
    )
    by_video: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_video.setdefault(Path(row["uri"]).stem, []).append(row)
    return by_video


def test_every_video_becomes_a_source_and_none_fails(
    ingested: Ingested, clips: dict[str, list[dict[str, Any]]]
) -> None:
    corpus, sampled, rest = ingested
    videos = sorted(path.stem for path in MEDIA.iterdir() if path.suffix in (".mp4", ".mov", ".mpg"))
    assert (sampled["sources"], rest["sources"]) == (SAMPLED, len(videos) - SAMPLED)
    assert (sampled["failures"], rest["failures"]) == ({}, {})
    assert sorted(clips) == videos
    assert [Path(path).name for path in rest["passed_over"]] == ["SHA256SUMS"]
    assert len(corpus.read("failures")) == 0


def test_forecast_is_reported_beside_the_measured_values(ingested: Ingested) -> None:
    corpus, sampled, rest = ingested
    forecast, actual = sampled["forecast"], rest["forecast"]
    waiting = forecast["sources"]
    assert (forecast["sampled"], waiting, actual["sources"], actual["done"]) == (
        SAMPLED,
        rest["sources"],
        waiting,
        waiting,
    )
    for name, figure in forecast["figures"].items():
        assert 0 <= figure["low"] <= figure["mid"] <= figure["high"], name
    assert forecast["figures"]["wall_h"]["mid"] > 0
    assert forecast["slowest_step"] in rest["step_seconds"]
    lengths = {
        row["uri"]: row["duration_s"] for row in corpus.read("sources", ["uri", "duration_s"]).to_pylist()
    }
    assert actual["actual"]["video_h"] * 3600 == pytest.approx(rest["video_seconds"], abs=0.1)
    assert rest["video_seconds"] + sampled["video_seconds"] == pytest.approx(sum(lengths.values()), abs=0.1)
    assert actual["actual"]["wall_h"] * 3600 == pytest.approx(rest["seconds"])
    assert actual["actual"]["clips"] == rest["clips"]


def test_videos_of_one_speaking_face_have_the_expected_signals(
    clips: dict[str, list[dict[str, Any]]],
) -> None:
    for name in SPEAKING:
        for row in clips[name]:
            assert row["language"] == "en"
            assert row["language_probability"] > 0.9
            assert row["face_coverage"] > 0.9
            assert (row["face_count"], row["speaker_count"], row["overlap_ratio"]) == (1, 1, 0)
            assert row["face_height_px"] > 200
            assert row["speech_ratio"] > 0.8
            assert 1 < row["words_per_s"] < 6
            assert row["snr_db"] > 15
            assert len(row["voice"]) == 192
            assert row["transcript"] == " ".join(word["text"] for word in row["words"])
            assert 2 <= row["duration_s"] <= 10
            assert row["sync_confidence"] < 0.5 or abs(row["sync_offset_ms"]) < 160


def test_defects_of_the_other_videos_show_in_their_signals(clips: dict[str, list[dict[str, Any]]]) -> None:
    for name in SILENT:
        assert {(row["has_audio"], row["transcript"], row["loudness_db"]) for row in clips[name]} == {
            (0, "", None)
        }
    assert len(clips["multi_shot_no_audio"]) > 3
    assert {row["language"] for row in clips["russian_speech_hevc"]} == {"ru"}
    four = clips["four_people_captions_english"]
    assert max(row["face_count"] for row in four) == 4 or max(row["face_coverage"] for row in four) < 0.5
    midway = clips["face_appears_midway"]
    assert min(row["face_coverage"] for row in midway) < 0.5
    (sentence,) = clips["one_sentence_mpeg1"]
    assert sentence["language_probability"] < 0.5
    assert sentence["word_count"] >= 1


def test_words_are_inside_their_clips_and_in_order(clips: dict[str, list[dict[str, Any]]]) -> None:
    for row in (row for rows in clips.values() for row in rows):
        at = 0.0
        for word in row["words"]:
            assert at - 0.07 <= word["start_s"] <= word["end_s"] <= row["end_s"] - row["start_s"] + 1e-3
            assert 0 <= word["score"] <= 1
            at = word["end_s"]


def test_clip_files_have_the_rates_of_a_sample(
    ingested: Ingested, clips: dict[str, list[dict[str, Any]]]
) -> None:
    corpus = ingested[0]
    for rows in clips.values():
        row = rows[0]
        frames = round((row["end_s"] - row["start_s"]) * VIDEO_FPS)
        frames_rgb = decode_video(corpus.media_path(row["clip_id"], "mp4").read_bytes())
        assert len(frames_rgb) == frames
        assert frames_rgb.shape[1] * frames_rgb.shape[2] <= CutConfig().pixels
        face = FaceTrack.from_bytes(corpus.media_path(row["clip_id"], "face.npz").read_bytes())
        assert face.oval.shape == (frames, 36, 2)
        flac = corpus.media_path(row["clip_id"], "flac")
        assert flac.exists() == bool(row["has_audio"])
        if flac.exists():
            assert (soundfile.info(flac).samplerate, soundfile.info(flac).frames) == (
                SAMPLE_RATE,
                frames * SAMPLE_RATE // VIDEO_FPS,
            )


REASONS = {
    "address_english_mpeg4": {""},
    "closeup_english": {""},
    "studio_english_16khz": {""},
    "interview_english_30fps_hevc": {""},
    "russian_speech_hevc": {"language"},
    "four_people_captions_english": {"face_count"},
    "one_sentence_mpeg1": {"language_probability"},
    "cartoon_no_audio": {"has_audio"},
    "multi_shot_no_audio": {"has_audio"},
    "face_appears_midway": {"face_coverage", "speech"},
}
"""Reasons of the default policy for the clips of each video; "" means kept."""


def test_default_policy_gives_every_video_the_expected_reason(ingested: Ingested) -> None:
    from uniavgen.curation.policy.decisions import decide
    from uniavgen.curation.policy.rules import load_policy

    corpus = ingested[0]
    decide(corpus, load_policy("default"))
    rows = corpus.query(
        """SELECT s.uri, d.reason
        FROM clips c JOIN decisions d USING (clip_id) JOIN sources s USING (source_id)
        ORDER BY s.uri, c.start_s"""
    ).to_pylist()
    reasons_by_video: dict[str, list[str]] = {}
    for row in rows:
        reasons_by_video.setdefault(Path(row["uri"]).stem, []).append(row["reason"])
    assert {name: set(reasons) for name, reasons in reasons_by_video.items()} == REASONS
    assert reasons_by_video["face_appears_midway"][0] == "face_coverage"
