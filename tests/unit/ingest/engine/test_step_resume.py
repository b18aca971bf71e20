"""What was measured is not measured again: on real media with the real models, whose calls are counted."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import speaking_face

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.ray_graph import make_runner
from uniavgen.ingest.engine.run_state import Board
from uniavgen.ingest.engine.step_cache import Results
from uniavgen.ingest.engine.step_graph import SPECS, STAGES, STEP_NAMES
from uniavgen.ingest.io import media
from uniavgen.ingest.measures import cutting
from uniavgen.ingest.measures.sound_quality import SoundMeter
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
    (SoundMeter, "signals"),
    (media, "decode_frames"),
    (cutting, "run_graph"),
)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a face, with speech."""
    return speaking_face(tmp_path_factory.mktemp("film") / "film.mp4")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each model, decoder and cut really ran."""
    counted: Counter[str] = Counter()

    def counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return method(*args, **kwargs)

        return call

    for owner, name in MODELS:
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    return counted


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("scratch")


def measure(film: Path, place: tuple[Path, Path], **changes: Any) -> tuple[SourceRecord, Board, IngestConfig]:
    """All stages in this process, as the graph runs them."""
    config, board = IngestConfig.model_validate(changes), Board()
    record = SourceRecord(str(film), stamp="1")
    for stage in STAGES:
        runner = make_runner((stage,), config, *place, board)
        if stage == STAGES[0]:
            runner.identify(record)
        runner.run(SourceRecord.from_json(record.to_json()) if record.failure is None else record)
    assert record.failure is None
    return record, board, config


def stored(
    record: SourceRecord, place: tuple[Path, Path], config: IngestConfig, step: str, kind: type
) -> Any:
    found = Results(place[0]).load(record.source_id, step, config.keys()[step], kind)
    assert found is not None
    return found


def test_only_what_is_missing_is_measured(film: Path, place: tuple[Path, Path], calls: Counter[str]) -> None:
    first, board, config = measure(film, place)
    kept = [name for name in STEP_NAMES if SPECS[name].kept]
    assert {name: board.totals()[name].done for name in kept} == dict.fromkeys(kept, 1)
    assert set(calls) == {name for _, name in MODELS}
    rows = stored(first, place, config, "measure", MeasuredRows).clips
    assert rows
    assert set(SIGNALS) <= set(rows[0])
    assert rows[0]["face_coverage"] == 1.0
    cut = {path: path.stat().st_mtime_ns for path in (place[0] / "media").rglob("*.mp4")}

    # the same again: nothing at all
    calls.clear()
    _, board, _ = measure(film, place)
    assert not calls
    assert {name: board.totals()[name].reused for name in kept} == dict.fromkeys(kept, 1)

    # another sync: sync and the rows, no other model, no picture, and no clip is cut again
    before = stored(first, place, config, "sync", SyncMeasures)
    _, board, changed = measure(film, place, sync={"max_shift_ms": 400})
    assert not calls
    assert {name for name in kept if board.totals()[name].done} == {"sync", "fingerprint", "measure"}
    after = stored(first, place, changed, "sync", SyncMeasures)
    assert len(after.clips) == len(before.clips)
    assert (
        stored(first, place, changed, "measure", MeasuredRows).clips[0]["sync_curve"] == after.clips[0].curve
    )
    assert {path: path.stat().st_mtime_ns for path in cut} == cut

    # another cut: clips are cut, nothing is measured
    calls.clear()
    measure(film, place, sync={"max_shift_ms": 400}, cut={"crf": 30})
    assert set(calls) == {"run_graph"}

    # another shot detection: no faces, no pictures at the size for faces
    calls.clear()
    measure(film, place, shots={"threshold": 0.45})
    assert calls["shots"] == 1
    assert not {"diarize", "transcribe", "landmarks", "covered", "decode_frames"} & set(calls)


def test_a_damaged_result_is_measured_again_and_comes_out_the_same(
    film: Path, place: tuple[Path, Path], calls: Counter[str]
) -> None:
    record, _, config = measure(film, place)
    before = stored(record, place, config, "faces", FacesSeen)
    (path,) = Results(place[0]).folder(record.source_id).glob("faces.*.npz")
    path.write_bytes(path.read_bytes()[:-50])
    calls.clear()
    measure(film, place)
    assert set(calls) == {"landmarks", "decode_frames"}
    np.testing.assert_array_equal(
        stored(record, place, config, "faces", FacesSeen).faces.lip_gap, before.faces.lip_gap
    )
