"""Crops and batches: frames, audio, words and face mask of exactly the same span."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_samples import encode_audio, face_mask, level_of_frame, make_sample
from texts import texts

from uniavgen.shards.errors import UserError
from uniavgen.shards.read.sampler import Place
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.sample import FaceTrack, Sample, Word, decode_audio
from uniavgen.shards.text import word_spans
from uniavgen.shards.timing import mels_for_frames
from uniavgen.train.codec.audio import MelCodec
from uniavgen.train.codec.registry import CodecConfig, Codecs, load_codecs
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import (
    choose_reference_audio,
    choose_reference_frame,
    crop_sample,
    fit_frame,
    random_for,
    words_in_window,
)
from uniavgen.train.data.loader import (
    MAX_REPLACEMENTS,
    BatchLoader,
    EncodedWindows,
    prefetched,
    replacement_position,
)

SMALL = DataConfig(frames=9, height=64, width=64, reference_frames=5, codecs=CodecConfig())


def ramp_sample(frames: int = 40) -> Sample:
    """A clip whose audio at sample n is n / 2^20, so that its time can be read exactly."""
    ramp = np.arange(frames * 1500) / 2**20
    return replace(make_sample("ramp", frames), audio=encode_audio(ramp.astype(np.float64)))


@pytest.mark.parametrize("step", range(4))
def test_frames_and_audio_of_a_window_have_the_same_span(step: int) -> None:
    crop = crop_sample(ramp_sample(), SMALL, random_for(0, step, 0))
    assert crop.frames is not None
    assert crop.reference_frame is not None
    levels = crop.frames[:, 2, 2, 0].astype(int)
    expected = [level_of_frame(crop.start + f) for f in range(SMALL.frames)]
    assert np.abs(levels - expected).max() <= 1
    np.testing.assert_allclose(
        crop.waveform * 2**20, crop.start * 1500 + np.arange(SMALL.frames * 1500), atol=0.5
    )
    assert not crop.reference_inside
    reference = (int(crop.reference_frame[0, 2, 2, 0]) - 20) / 3
    assert not crop.start <= round(reference) < crop.start + SMALL.frames
    first = round(float(crop.reference_waveform[0]) * 2**20 / 1500)
    assert first + SMALL.reference_frames <= crop.start or first >= crop.start + SMALL.frames


def test_mel_of_a_window_equals_the_clip_mel_at_that_time() -> None:
    sample = make_sample(
        "a", 64, seed=3
    )  # a window at a multiple of 64 frames would start on a whole mel frame
    crop = crop_sample(sample, SMALL, random_for(0, 5, 0))
    codec = MelCodec(SMALL.codecs.mel)
    mel = codec.encode(torch.from_numpy(crop.waveform)[None], SMALL.mels)
    assert mel.shape[-1] == mels_for_frames(SMALL.frames)
    whole = torch.from_numpy(decode_audio(sample.audio))[None]
    part = codec.encode(whole[:, crop.start * 1500 :], SMALL.mels)
    torch.testing.assert_close(mel[..., 3:-3], part[..., 3:-3], atol=1e-4, rtol=1e-4)


def test_face_mask_of_a_known_oval_is_its_area_per_token() -> None:
    face = make_sample("a", 9).face
    mask = face_mask(face, range(9), (64, 64), (128, 128))
    assert mask.shape == (3, 4, 4)
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 1
    assert np.abs(mask - expected).max() <= 0.125  # the rasteriser's finer grid has eight steps a token


def test_face_mask_follows_the_centre_crop() -> None:
    face = make_sample("a", 1).face  # in a 128 x 64 frame, of which the middle 64 x 64 is kept
    mask = face_mask(face, range(1), (64, 128), (64, 64))
    np.testing.assert_allclose(mask[0], [[0.5, 0.5], [0.5, 0.5]], atol=0.13)


def test_face_mask_of_a_latent_is_the_mean_over_its_frames() -> None:
    face = make_sample("a", 9).face
    seen = FaceTrack(face.oval, face.box, np.array([1, 1, 1, 0, 0, 0, 0, 0, 0], np.float32))
    mask = face_mask(seen, range(9), (64, 64), (128, 128))
    np.testing.assert_allclose(mask[:, 1, 1], [1, 0.5, 0], atol=0.13)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 64), (96, 32)])
def test_fit_frame_covers_and_crops_the_centre(height: int, width: int) -> None:
    y, x = np.mgrid[0:80, 0:120]
    frame = np.stack([x, y, x * 0], axis=-1).astype(np.uint8)
    fitted = fit_frame(frame, height, width)
    assert fitted.shape == (height, width, 3)
    middle = fitted.mean(axis=(0, 1))
    assert abs(middle[0] - 59.5) < 1.5
    assert abs(middle[1] - 39.5) < 1.5
    step = (
        np.diff(fitted[height // 2, :, 0].astype(float)).mean(),
        np.diff(fitted[:, width // 2, 1].astype(float)).mean(),
    )
    assert step[0] == pytest.approx(step[1], rel=0.1)  # nothing is squeezed


def test_words_in_window_by_their_middle() -> None:
    words = [
        Word(text=t, start_s=s, end_s=s + 0.5) for t, s in (("a", 0.0), ("b", 0.8), ("c", 1.5), ("d", 1.9))
    ]
    assert words_in_window("a b c d", words, 16, 16) == "b c"
    assert words_in_window("a b c d", words, 160, 16) == ""
    assert words_in_window("words of another text", words, 16, 16) == "b c"


@given(texts, st.data())
@settings(deadline=None)
def test_text_of_window_is_a_part_of_the_transcript(text: str, draw: st.DataObject) -> None:
    spans = word_spans(text)
    words = [Word(text=text[a:b], start_s=i, end_s=i + 1) for i, (a, b) in enumerate(spans)]
    first = draw.draw(st.integers(0, len(words)))
    last = draw.draw(st.integers(first, len(words)))
    found = words_in_window(text, words, 16 * first, 16 * (last - first))
    assert found == (text[spans[first][0] : spans[last - 1][1]] if last > first else "")


@given(st.integers(5, 200), st.integers(1, 30), st.data())
@settings(max_examples=60, deadline=None)
def test_reference_audio_is_outside_the_window_if_the_clip_is_long_enough(
    total: int, wanted: int, draw: st.DataObject
) -> None:
    start = draw.draw(st.integers(0, total - 5))
    first, length = choose_reference_audio(total, start, 5, wanted, np.random.default_rng(0))
    assert first >= 0
    assert first + length <= total
    assert 0 < length <= wanted
    if max(start, total - start - 5) >= 4:
        assert first + length <= start or first >= start + 5


def test_reference_frame_has_a_face_and_is_away_from_the_window() -> None:
    score = np.ones(60, np.float32)
    score[50:] = 0
    chosen = {choose_reference_frame(score, 10, 9, np.random.default_rng(i)) for i in range(200)}
    assert chosen == {0, 1, *range(27, 50)}
    assert choose_reference_frame(np.zeros(9), 0, 9, np.random.default_rng(0)) in range(9)


def test_batch_is_independent_of_its_split(shards_dir) -> None:
    config = DataConfig(frames=9, height=64, width=64, reference_frames=5)
    codecs = load_codecs(config.codecs, with_video=False)
    stream = SampleStream(str(shards_dir))
    loader = BatchLoader(stream, config, EncodedWindows(stream, config, codecs), 4)
    whole = loader.load(3, range(4))
    halves = [loader.load(3, indices).batch for indices in (range(2), range(2, 4))]
    assert whole.batch.keys == halves[0].keys + halves[1].keys
    assert torch.equal(whole.batch.mel, torch.cat([half.mel for half in halves]))
    assert whole.batch.video is None


def test_batch_shapes(shards_dir) -> None:
    codecs = Codecs(MelCodec(SMALL.codecs.mel), load_video(), FakeCaption())  # type: ignore[arg-type]
    loaded = loader_of(SampleStream(str(shards_dir)), codecs, 2).load(0, [0, 1])
    batch = loaded.batch
    shapes = {
        name: tuple(getattr(batch, name).shape)
        for name in ("video", "reference", "mel", "reference_mel", "face")
    }
    assert shapes == {
        "video": (2, 48, 3, 4, 4),
        "reference": (2, 48, 1, 4, 4),
        "mel": (2, 100, 53),
        "reference_mel": (2, 100, 30),
        "face": (2, 3, 2, 2),
    }
    assert batch.speech_ids.shape == batch.speech_mask.shape == (2, SMALL.speech_bytes)
    assert batch.caption is not None
    assert batch.caption.shape == (2, SMALL.caption_tokens, 3)


def loader_of(stream: Any, codecs: Codecs, batch: int) -> BatchLoader:
    return BatchLoader(stream, SMALL, EncodedWindows(stream, SMALL, codecs), batch)


def load_video():
    from uniavgen.train.codec.video import DctCodec

    return DctCodec()


class FakeCaption:
    """Caption features without weights: the loader only stacks them."""

    def encode(self, captions: list[str], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(len(captions), tokens, 3), torch.ones(len(captions), tokens, dtype=torch.bool)


def test_short_and_damaged_clips_are_replaced_and_counted() -> None:
    good, short = make_sample("good", 20), make_sample("short", 4)
    damaged = replace(make_sample("damaged", 20), video=b"no video")

    class Three:
        place = Place()

        def __len__(self) -> int:
            return 3

        def sample_at(self, position: int) -> Sample:
            return [short, damaged, good][position % 3]

    codecs = Codecs(MelCodec(SMALL.codecs.mel), load_video(), FakeCaption())  # type: ignore[arg-type]
    loaded = loader_of(Three(), codecs, 3).load(0, range(3))
    assert loaded.batch.keys == ["good"] * 3
    assert loaded.counts["short"] >= 1
    assert loaded.counts["damaged"] >= 1


def test_stream_of_short_clips_only_raises_with_a_hint() -> None:
    class Short:
        place = Place()

        def __len__(self) -> int:
            return 2

        def sample_at(self, position: int) -> Sample:
            return make_sample("short", 4)

    loader = loader_of(Short(), Codecs(MelCodec(SMALL.codecs.mel)), 1)
    with pytest.raises(UserError, match="lower train.data.frames"):
        loader.load(0, [0])


def test_audio_shorter_than_video_is_damage() -> None:
    sample = make_sample("a", 20)
    cut = replace(sample, audio=encode_audio(np.zeros(10 * 1500)))
    config = DataConfig(frames=17, height=64, width=64)
    with pytest.raises(UserError, match="shorter than its video") as caught:
        crop_sample(cut, config, random_for(0, 0, 0), with_video=False)
    assert caught.value.kind == "damaged-sample"


@given(st.integers(0, 10_000), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_replacement_positions_stay_in_the_epoch_and_spread(position: int, samples: int) -> None:
    tried = [replacement_position(position, attempt, samples) for attempt in range(MAX_REPLACEMENTS)]
    assert tried[0] == position
    assert {p // samples for p in tried} == {position // samples}
    assert len(set(tried)) >= min(samples, MAX_REPLACEMENTS) * 0.6


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetched_keeps_order_and_raises_errors(depth: int) -> None:
    assert list(prefetched(lambda k: k * k, range(7), depth)) == [k * k for k in range(7)]

    def fail_at_three(key: int) -> int:
        if key == 3:
            raise UserError("three")
        return key

    items = prefetched(fail_at_three, itertools.count(), depth)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="three"):
        next(items)
