"""Stored results are reused: real media and real models, whose calls are counted."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import speaking_face

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.loading import ModelLoader
from uniavgen.ingest.engine.progress import RunState
from uniavgen.ingest.engine.runner import Runner
from uniavgen.ingest.engine.step import POOLS, Step, StepGraph
from uniavgen.ingest.engine.step_cache import StepCache
from uniavgen.ingest.io import clip_encoding, media
from uniavgen.ingest.measures.listen import AudioMeter
from uniavgen.ingest.measures.registry import step_graph
from uniavgen.ingest.models.diarizer import Diarizer
from uniavgen.ingest.models.face_reader import FaceReader
from uniavgen.ingest.models.shot_detector import ShotDetector
from uniavgen.ingest.models.text_detector import TextDetector
from uniavgen.ingest.models.transcriber import Transcriber
from uniavgen.ingest.records import FacesSeen, MeasuredRows, SourceRecord, SyncMeasures
from uniavgen.shards.corpus.signals import SIGNALS

pytestmark = pytest.mark.slow

MODELS: tuple[tuple[Any, str], ...] = (
    (Diarizer, "diarize"),
    (Transcriber, "transcribe"),
    (FaceReader, "landmarks"),
    (ShotDetector, "shots"),
    (TextDetector, "covered"),
    (AudioMeter, "signals"),
    (media, "decode_frames"),
    (clip_encoding, "run_graph"),
)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a face, with speech."""
    return speaking_face(tmp_path_factory.mktemp("video") / "video.mp4")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of calls of each model, decoder and cut."""
    counted: Counter[str] = Counter()

    def counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return method(*args, **kwargs)

        return call

    for owner, name in MODELS:
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))

    def load(self: ModelLoader, step: Step) -> None:
        """Load models; that they are tried is not counted."""
        before = counted.copy()
        loading(self, step)
        counted.clear()
        counted.update(before)

    loading = ModelLoader.load
    monkeypatch.setattr(ModelLoader, "load", load)
    return counted


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run directory and corpus."""
    return tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("corpus")


def measure(
    video: Path, folders: tuple[Path, Path], **changes: Any
) -> tuple[SourceRecord, RunState, StepGraph]:
    """Run all pools in this process, as the Ray graph runs them."""
    graph = step_graph(IngestConfig.model_validate(changes))
    state = RunState(list(graph.by_name))
    record = SourceRecord(str(video), stamp="1")
    for pool in POOLS:
        runner = Runner(graph, (pool,), *folders, state)
        if pool == POOLS[0]:
            runner.identify(record)
        runner.run(SourceRecord.from_json(record.to_json()) if record.failure is None else record)
    assert record.failure is None
    return record, state, graph


def stored(record: SourceRecord, folders: tuple[Path, Path], graph: StepGraph, kind: type) -> Any:
    cache = StepCache(folders[1])

    def result_of(kind: type) -> Any:
        name = graph.step_of(kind)
        return cache.load(record.source_id, name, graph.key(name, result_of), kind)

    found = result_of(kind)
    assert found is not None
    return found


def test_only_missing_results_are_measured(
    video: Path, folders: tuple[Path, Path], calls: Counter[str]
) -> None:
    first, state, graph = measure(video, folders)
    kept = [step.name for step in graph.steps if step.stored]
    assert {name: state.totals()[name].done for name in kept} == dict.fromkeys(kept, 1)
    assert set(calls) == {name for _, name in MODELS}
    rows = stored(first, folders, graph, MeasuredRows).clips
    assert rows
    unmeasured = {name for name in SIGNALS if rows[0][name] is None}
    assert unmeasured == {"channel_correlation", "syncnet_confidence", "syncnet_distance"}
    assert rows[0]["face_coverage"] == 1.0
    cut = {path: path.stat().st_mtime_ns for path in (folders[1] / "media").rglob("*.mp4")}

    # the same again: no call at all
    calls.clear()
    _, state, _ = measure(video, folders)
    assert not calls
    assert {name: state.totals()[name].reused for name in kept} == dict.fromkeys(kept, 1)

    # other sync settings: sync and the rows, no model, no decoding, no cut
    before = stored(first, folders, graph, SyncMeasures)
    _, state, changed = measure(video, folders, sync={"max_shift_ms": 400})
    assert not calls
    assert {name for name in kept if state.totals()[name].done} == {"sync", "fingerprint", "measure"}
    after = stored(first, folders, changed, SyncMeasures)
    assert len(after.clips) == len(before.clips)
    assert stored(first, folders, changed, MeasuredRows).clips[0]["sync_curve"] == after.clips[0].curve
    assert {path: path.stat().st_mtime_ns for path in cut} == cut

    # other cut settings: clips are cut, nothing is measured
    calls.clear()
    measure(video, folders, sync={"max_shift_ms": 400}, cut={"crf": 30})
    assert set(calls) == {"run_graph"}

    # other shot settings: no faces, no frames at the size for faces
    calls.clear()
    measure(video, folders, shots={"threshold": 0.45})
    assert calls["shots"] == 1
    assert not {"diarize", "transcribe", "landmarks", "covered", "decode_frames"} & set(calls)


def test_damaged_result_is_measured_again_with_equal_outcome(
    video: Path, folders: tuple[Path, Path], calls: Counter[str]
) -> None:
    record, _, graph = measure(video, folders)
    before = stored(record, folders, graph, FacesSeen)
    (path,) = StepCache(folders[1]).folder(record.source_id).glob("faces.*.npz")
    path.write_bytes(path.read_bytes()[:-50])
    calls.clear()
    measure(video, folders)
    assert set(calls) == {"landmarks", "decode_frames"}
    np.testing.assert_array_equal(
        stored(record, folders, graph, FacesSeen).faces.lip_gap, before.faces.lip_gap
    )
