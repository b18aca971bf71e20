"""Made data of the ablations: a pure function of its seed; readers invert it; texts do not tell times."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS
from uniavgen.train.ablation.config import FACE_TOKENS, WorldConfig
from uniavgen.train.ablation.readout import CORNER_STEP, agreement, find_face, read_face, read_voice
from uniavgen.train.ablation.world import (
    MOUTH_GAIN,
    areas,
    mel_basis,
    mouth_of,
    standardised,
    timbre_of,
    world_batch,
    world_clips,
)
from uniavgen.train.batch import validate_batch

WORLD = WorldConfig()
CLIPS = tuple(range(64))


def test_clip_depends_on_seed_and_index_only() -> None:
    alone, among = world_batch(WORLD, 3, (7,)), world_batch(WORLD, 3, (2, 7, 9))
    other = world_batch(WORLD, 4, (7,))
    for name, value in vars(alone).items():
        if isinstance(value, torch.Tensor):
            # sums of another batch size may round otherwise
            torch.testing.assert_close(value[0], getattr(among, name)[1], atol=1e-5, rtol=0, msg=name)
            assert name in ("caption_mask", "speech_mask") or not torch.equal(value, getattr(other, name)), (
                name
            )


def test_made_batch_is_valid_for_training() -> None:
    validate_batch(world_batch(WORLD, 0, CLIPS), WORLD.mels_per_frame)


def test_readers_invert_clips_without_noise() -> None:
    world = WorldConfig(texture=0.0)
    batch, truth = world_clips(world, 0, CLIPS)
    face, voice = read_face(batch.video, world), read_voice(batch.mel, world)
    # the corner of the face is searched on a grid of 0.05 tokens
    torch.testing.assert_close(face.corner, truth.corner, atol=0.05, rtol=0)
    torch.testing.assert_close(voice.loudness, standardised(truth.speech), atol=1e-4, rtol=0)
    torch.testing.assert_close(voice.timbre, timbre_of(truth.look), atol=1e-4, rtol=0)
    for value, true in (
        (face.mouth, truth.mouth),
        (face.expression, truth.expression),
        (face.look, truth.look),
    ):
        assert (value - true).abs().max() < 0.06 * true.abs().max()


def test_reading_error_is_below_the_noise() -> None:
    batch, truth = world_clips(WORLD, 0, CLIPS)
    face, voice = read_face(batch.video, WORLD), read_voice(batch.mel, WORLD)
    for value, true in (
        (face.mouth, truth.mouth),
        (face.expression, truth.expression),
        (voice.loudness, standardised(truth.speech)),
    ):
        assert (value - true).square().mean().sqrt() < 1.5 * WORLD.texture


def test_agreement_is_high_for_truth_and_zero_for_shuffled_pairs() -> None:
    batch = world_batch(WORLD, 1, tuple(range(256)))
    truth = agreement(batch.video, batch.mel, WORLD)
    assert truth["sync"].min() > 0.95
    assert truth["sync_error_ms"].max() == 0
    assert truth["timbre"].min() > 0.95
    assert truth["expression"].mean() > 0.9
    chance = agreement(batch.video, batch.mel.roll(1, 0), WORLD)
    for name in ("sync", "timbre", "expression"):
        assert abs(chance[name].mean()) < 4 * chance[name].std() / 16, name
    # lags spread evenly over half a second either way would be 265 ms away
    assert 200 < chance["sync_error_ms"].mean() < 350


@pytest.mark.parametrize("lag", [-3, 2])
def test_audio_shift_is_measured_in_milliseconds(lag: int) -> None:
    world = WorldConfig(texture=0.0)
    batch = world_batch(world, 2, CLIPS)
    mels = round(lag * float(world.mels_per_frame))
    late = agreement(batch.video, batch.mel.roll(mels, 2), world)
    wanted = abs(mels) * 1000 * world.hop / SAMPLE_RATE
    assert late["sync_error_ms"].median().item() == pytest.approx(wanted, abs=1000 / VIDEO_FPS / 2)
    assert late["sync"].mean() < 0.5


def test_mouth_moves_before_the_audio() -> None:
    world = WorldConfig(lead_s=0.2, spread_s=0.02)
    pulse = torch.zeros(1, world.mels)
    pulse[0, 30] = 1.0
    peak = mouth_of(pulse, world).argmax().item() / VIDEO_FPS
    assert 30 * world.hop / SAMPLE_RATE - peak == pytest.approx(0.2, abs=0.5 / VIDEO_FPS)
    torch.testing.assert_close(
        mouth_of(torch.ones(1, world.mels), world), torch.full((1, world.frames), MOUTH_GAIN)
    )


def test_texts_do_not_tell_the_times_of_syllables() -> None:
    """Clips with equal words have speech as different as any two clips; captions tell only the scene."""
    batch, truth = world_clips(WORLD, 5, tuple(range(600)))
    words = [
        bytes((ids[mask] - 1).tolist()) for ids, mask in zip(batch.speech_ids, batch.speech_mask, strict=True)
    ]
    assert set(b"".join(words)) == set(b"aeo")
    length = torch.tensor([len(word) for word in words])
    track = truth.speech - truth.speech.mean(1, keepdim=True)
    same, other = [], []
    for i in range(0, 600, 2):
        peers = [j for j in range(600) if j != i and length[j] == length[i] and words[j][:2] == words[i][:2]]
        same += [torch.cosine_similarity(track[i], track[j], dim=0).item() for j in peers[:5]]
        other += [torch.cosine_similarity(track[i], track[j], dim=0).item() for j in range(5) if j != i]
    assert sum(same) / len(same) - sum(other) / len(other) < 0.1
    design = torch.cat([batch.caption[:, 0], torch.ones(600, 1)], dim=1)
    for target in (truth.speech[:, 20], truth.look[:, 0], truth.expression[:, 4]):
        fitted = design @ torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
        assert 1 - (target - fitted).var() / target.var() < 0.03


def test_reference_audio_has_the_same_timbre_and_other_speech() -> None:
    batch, truth = world_clips(WORLD, 6, CLIPS)
    coordinates = batch.reference_mel.transpose(1, 2) @ mel_basis().T
    torch.testing.assert_close(coordinates[..., 1:4].mean(1), timbre_of(truth.look), atol=0.15, rtol=0)
    speech = standardised(truth.speech)[:, : WORLD.reference_mels]
    assert torch.cosine_similarity(coordinates[..., 0], speech, dim=1).mean() < 0.7


@settings(max_examples=40, deadline=None)
@given(row=st.floats(0, 1), column=st.floats(0, 2))
@example(row=0.921875, column=0.2265625)
def test_find_face_returns_the_place_of_the_face(row: float, column: float) -> None:
    corner = torch.tensor([[[row, column]]])
    area = areas(WORLD, corner)
    assert area.sum().item() == pytest.approx(FACE_TOKENS**2, rel=1e-5)
    centres = torch.stack(torch.meshgrid(torch.arange(3) + 0.5, torch.arange(4) + 0.5, indexing="ij"), dim=-1)
    middle = (area[0, 0, ..., None] * centres).sum((0, 1)) / FACE_TOKENS**2
    torch.testing.assert_close(middle, torch.tensor([row, column]) + FACE_TOKENS / 2, atol=1e-4, rtol=0)
    # between two grid steps either may be nearer
    torch.testing.assert_close(find_face(2 * area, WORLD), corner, atol=CORNER_STEP, rtol=0)
