"""Every metric that is measured orders real, disturbed and swapped clips of the demo's heads and voices."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from speaking_clips import heard, rendered_frames, spoken

from uniavgen.ingest.config import IngestConfig
from uniavgen.orchestration.demo.script import SENTENCES
from uniavgen.orchestration.evaluation.controls import LEVELS, partners
from uniavgen.orchestration.evaluation.meters import (
    FaceConsistencyMeter,
    FaceFoundMeter,
    FaceSource,
    IdentityMeter,
    ImageQualityMeter,
    Meter,
    MotionMeter,
    SpeechQualityMeter,
    SyncMeter,
    VoiceMeter,
    VoiceSource,
    VoiceStabilityMeter,
    WordMeter,
)
from uniavgen.orchestration.evaluation.results import GENERATED, Result
from uniavgen.orchestration.evaluation.summary import MetricScore, metric_scores
from uniavgen.orchestration.evaluation.videos import Media

pytestmark = pytest.mark.slow
CLIPS = (("joe", "astronaut", 0), ("ann", "mirror", 6), ("joe", "astronaut", 2))
OTHER_LINE = {"joe": 11, "ann": 8}
SECONDS, VOICE_S = 3.5, 2.5
SIZE = 160


@pytest.fixture(scope="module")
def media() -> list[Media]:
    """Three heads that say a sentence each, two persons; voice and portrait are of another sentence."""
    clips = []
    for number, (voice, look, line) in enumerate(CLIPS):
        phones, pcm = spoken(voice, line)
        frames = np.stack(rendered_frames(look, phones, seed=number, size=SIZE, seconds=SECONDS))
        portrait = rendered_frames(look, phones, seed=9, size=SIZE, seconds=1 / 16)[0]
        reference = heard(spoken(voice, OTHER_LINE[voice])[1], 0.0, seconds=VOICE_S)
        sound = heard(pcm, 0.0, seconds=SECONDS)
        clips.append(Media(frames, sound, SENTENCES[line], reference, portrait))
    return clips


@pytest.fixture(scope="module")
def short(media: list[Media]) -> list[Media]:
    """The first second: three frames get a face embedding."""
    return [replace(clip, frames=clip.frames[:17]) for clip in media]


@pytest.fixture(scope="module")
def voices(ingest: IngestConfig) -> VoiceSource:
    return VoiceSource(ingest)


@pytest.fixture(scope="module")
def ingest() -> IngestConfig:
    return IngestConfig()


@pytest.fixture(scope="module")
def faces(ingest: IngestConfig) -> Iterator[FaceSource]:
    source = FaceSource(ingest)
    yield source
    source.close()


def scores_of(meter: Meter, clips: Sequence[Media]) -> dict[str, MetricScore]:
    """Scores of the clips as generated videos, which are their own real clips, with every control."""
    others = partners([voice for voice, _, _ in [*CLIPS, CLIPS[1]][: len(clips)]])
    results = []
    for number, clip in enumerate(clips):
        for level in LEVELS:
            found = meter.measure(meter.control.media(level, clip, clips[others[number]]))
            results.append(Result("", str(number), level, meter.name, found.values, found.vectors))
            if level == "real":
                results.append(replace(results[-1], level=GENERATED))
    return {score.metric: score for score in metric_scores(results)}


def assert_ordered(scores: dict[str, MetricScore], *metrics: str) -> None:
    assert set(scores) == set(metrics)
    assert {name: score.order for name, score in scores.items() if not score.reported} == {}


def test_speech_quality_orders_noise(media: list[Media], ingest: IngestConfig) -> None:
    clips = [*media, replace(media[1], pcm=media[1].voice)]  # FD needs four
    assert_ordered(scores_of(SpeechQualityMeter(ingest), clips), "DNSMOS-OVRL", "DNSMOS-BAK", "FD-mel")


def test_voice_similarity_orders_foreign_voices(media: list[Media], voices: VoiceSource) -> None:
    assert_ordered(scores_of(VoiceMeter(voices), media), "TC-ref")


def test_voice_stability_orders_spliced_voices(media: list[Media], voices: VoiceSource) -> None:
    # each half is a sentence of the same voice
    length = round(16_000 * VOICE_S)
    pairs = [replace(clip, pcm=np.concatenate([clip.pcm[:length], clip.voice])) for clip in media]
    assert_ordered(scores_of(VoiceStabilityMeter(voices), pairs), "TC-self")


def test_lip_sync_orders_foreign_sound(media: list[Media], faces: FaceSource) -> None:
    assert_ordered(scores_of(SyncMeter(faces), media), "sync-confidence", "sync-offset")


def test_face_found_orders_frames_without_a_face(short: list[Media], faces: FaceSource) -> None:
    assert_ordered(scores_of(FaceFoundMeter(faces), short), "face-found")


def test_identity_orders_frames_of_another_person(short: list[Media], faces: FaceSource) -> None:
    assert_ordered(scores_of(IdentityMeter(faces), short), "ID-dlib")
    assert_ordered(scores_of(FaceConsistencyMeter(faces), short), "SC-dlib")


def test_motion_orders_slowed_and_still_videos(media: list[Media]) -> None:
    assert_ordered(scores_of(MotionMeter(), media), "motion-dis")


def test_image_quality_orders_blur(media: list[Media]) -> None:
    assert_ordered(scores_of(ImageQualityMeter(), media), "IQ-brisque")


def test_words_order_foreign_sound(media: list[Media], ingest: IngestConfig) -> None:
    said = [spoken(voice, line)[1] for voice, _, line in CLIPS]
    whole = [replace(clip, pcm=pcm) for clip, pcm in zip(media, said, strict=True)]
    scores = scores_of(WordMeter(ingest), whole)
    assert_ordered(scores, "WER-base")
    assert scores["WER-base"].order.means["real"] < 0.15
