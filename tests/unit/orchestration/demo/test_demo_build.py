"""Build of the demo corpus: encoded files, truth, reuse, resuming, planted defects."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from uniavgen.orchestration.demo import build
from uniavgen.orchestration.demo.build import PARTS, build_demo, demo_digest, make_source
from uniavgen.orchestration.demo.script import SENTENCES, VIDEO_SPECS, Scene, VideoSpec
from uniavgen.orchestration.demo.truth import TRUTH_NAME, DemoTruth
from uniavgen.shards.errors import UserError

TALK = VideoSpec("talk.mp4", (Scene("joe", "astronaut", (7,)), Scene("ann", "mirror", (9,))), size=192)
TEXT = VideoSpec("text.mp4", (), defect="not-a-video")


def _decode(path: Path) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Frames in RGB, mono audio float32 [n] and its sample rate, as PyAV reads them."""
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
        chunks = [
            part.to_ndarray()[0] for frame in container.decode(audio=0) for part in mono.resample(frame)
        ]
        return frames, np.concatenate(chunks), rate


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoTruth]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, build_demo(folder, workers=1, specs=(TALK, TEXT))


def test_video_has_frames_audio_and_cut_of_its_spec(talk: tuple[Path, DemoTruth]) -> None:
    folder, truth = talk
    source = truth.sources[0]
    frames, audio, rate = _decode(folder / "talk.mp4")
    assert len(frames) == round(source.duration_s * source.fps)
    assert len(audio) / rate == pytest.approx(source.duration_s, abs=0.06)
    jumps = [np.abs(a.astype(int) - b).mean() for a, b in pairwise(frames)]
    assert 1 + int(np.argmax(jumps)) == round(source.cuts_s[0] * source.fps)
    (first, second), cut = source.turns, source.cuts_s[0]
    assert first.end_s < cut < second.start_s
    loud = [
        np.sqrt(np.mean(audio[round(t.start_s * rate) : round(t.end_s * rate)] ** 2)) for t in source.turns
    ]
    pause = audio[round((first.end_s + 0.15) * rate) : round((second.start_s - 0.1) * rate)]
    assert min(loud) > 20 * np.sqrt(np.mean(pause**2))


def test_truth_is_restored_from_its_file_and_has_a_face_for_every_frame(talk: tuple[Path, DemoTruth]) -> None:
    folder, truth = talk
    assert DemoTruth.load(folder) == truth
    source = truth.sources[0]
    assert source.text.split()[0] == SENTENCES[7].split()[0]
    assert [turn.voice for turn in source.turns] == ["joe", "ann"]
    assert len(source.face) == pytest.approx(source.duration_s * 10, abs=1)
    assert np.ptp(np.array(source.face), axis=1).min() > 0.2
    assert not (folder / PARTS).exists()


def test_finished_corpus_is_reused_unchanged(talk: tuple[Path, DemoTruth]) -> None:
    folder, truth = talk
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build_demo(folder, specs=(TALK, TEXT)) == truth
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_interrupted_build_makes_only_missing_videos(tmp_path: Path) -> None:
    other = replace(TEXT, name="other.mp4")
    digest = demo_digest((TEXT, other))
    (tmp_path / PARTS).mkdir()
    build.make_part(tmp_path, TEXT, digest)
    (tmp_path / PARTS / "other.mp4.part").write_text("half")
    made_at = (tmp_path / "text.mp4").stat().st_mtime_ns
    names: list[str] = []
    truth = build_demo(
        tmp_path, workers=1, specs=(TEXT, other), on_progress=lambda done, total, name: names.append(name)
    )
    assert names == ["other.mp4"]
    assert (tmp_path / "text.mp4").stat().st_mtime_ns == made_at
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.mp4", "text.mp4", TRUTH_NAME]
    assert [source.fate for source in truth.sources] == ["not-a-video"] * 2


def test_changed_specs_replace_the_corpus_and_remove_old_videos(tmp_path: Path) -> None:
    other = replace(TEXT, name="other.mp4")
    build_demo(tmp_path, workers=1, specs=(TEXT, other))
    truth = build_demo(tmp_path, workers=1, specs=(other,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.mp4", TRUTH_NAME]
    assert truth.digest == demo_digest((other,))


def test_late_audio_has_the_delay_of_its_truth(tmp_path: Path) -> None:
    spec = VideoSpec(
        "late.mov", (Scene("bob", "", (7,)),), size=64, audio="pcm_s16le", rate=48_000, defect="sound-late"
    )
    on_time = make_source(tmp_path, replace(spec, defect=""))
    _, early, rate = _decode(tmp_path / "late.mov")
    late = make_source(tmp_path, spec)
    _, audio, _ = _decode(tmp_path / "late.mov")
    assert late.shift_ms == 400
    assert np.allclose(audio[round(0.4 * rate) : round(4.4 * rate)], early[: 4 * rate], atol=2e-4)
    assert [w.start_s for w in late.words] == pytest.approx([w.start_s + 0.4 for w in on_time.words])


def test_truncated_video_cannot_be_opened(tmp_path: Path) -> None:
    import av

    truth = make_source(
        tmp_path, VideoSpec("cut.mp4", (Scene("joe", "", (7,)),), size=64, defect="truncated")
    )
    assert truth.fate == "truncated"
    with pytest.raises(av.error.FFmpegError), av.open(str(tmp_path / "cut.mp4")):
        pass


def test_video_without_audio_has_no_audio_stream_and_no_words(tmp_path: Path) -> None:
    import av

    truth = make_source(
        tmp_path, VideoSpec("mute.mp4", (Scene("joe", "", (7,)),), size=64, audio="", defect="no-sound")
    )
    with av.open(str(tmp_path / "mute.mp4")) as container:
        assert not container.streams.audio
    assert truth.words == ()


def test_missing_or_damaged_truth_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read .*truth\.json"):
        DemoTruth.load(tmp_path)
    (tmp_path / TRUTH_NAME).write_text(json.dumps({"truth_version": 99}))
    with pytest.raises(UserError, match="build the demo corpus again"):
        DemoTruth.load(tmp_path)


def test_script_has_enough_voices_cuts_containers_and_defects() -> None:
    good = [spec for spec in VIDEO_SPECS if not spec.defect]
    voices = [{scene.voice for scene in spec.scenes} for spec in good]
    assert len(VIDEO_SPECS) >= 13
    assert sum(len(v) == 2 for v in voices) >= 2
    assert sum(len(v) == 1 and len(p.scenes) == 2 for v, p in zip(voices, good, strict=True)) >= 2
    assert {spec.defect for spec in VIDEO_SPECS} == {
        "",
        "no-sound",
        "no-face",
        "sound-late",
        "truncated",
        "not-a-video",
    }
    for voice in ("joe", "ann", "bob", "reader"):
        assert sum(v == {voice} for v in voices) >= 2
    assert sum(len(scene.lines) for spec in good for scene in spec.scenes) >= 25
    assert len({spec.name.split(".")[-1] for spec in good}) >= 4
    assert len({(spec.video, spec.audio) for spec in good}) >= 5
