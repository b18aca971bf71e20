"""Loading models: broken files and libraries are the machine's fault, said in one line."""

import ctypes.util
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.loading import MAX_DEATHS
from uniavgen.ingest.engine.machine_faults import MACHINE, stopping_error
from uniavgen.ingest.engine.progress import RunState
from uniavgen.ingest.engine.runner import Runner
from uniavgen.ingest.engine.step import Step, StepGraph
from uniavgen.ingest.measures.diarize import DiarizeStep
from uniavgen.ingest.measures.faces import FaceStep
from uniavgen.ingest.measures.listen import ListenStep
from uniavgen.ingest.measures.registry import STEPS, step_graph
from uniavgen.ingest.measures.text import TextStep
from uniavgen.ingest.measures.transcribe import TranscribeStep
from uniavgen.ingest.records import LocalCopy, SourceRecord
from uniavgen.shards import weights
from uniavgen.shards.weights import REGISTRY, cache_folder, damaged_files, resolve

LOADING_STEPS = [step for step in STEPS if step.load is not Step.load]

FILES = {
    "listen": (ListenStep, "dnsmos", "sound_quality.dnsmos_folder"),
    "text": (TextStep, "ppocr-det", "text.folder"),
    "faces": (FaceStep, "face-landmarker", "faces.landmarker_folder"),
    "face vectors": (FaceStep, "dlib-face", "faces.vectors_folder"),
    "diarize": (DiarizeStep, "ecapa", "diarization.ecapa_folder"),
    "transcribe": (TranscribeStep, "whisper-base", "transcription.model"),
}


def configured(setting: str, value: object) -> IngestConfig:
    section, name = setting.split(".")
    return IngestConfig.model_validate({section: {name: str(value)}})


def message_of(step: type[Step], config: IngestConfig, folder: Path) -> str:
    """The line with which a run ends whose first source needs the step's models."""
    video = folder / "a.mp4"
    video.touch()

    class Alone(Step):
        """The step's models, without what it reads."""

        name, pool, version, result = step.name, "sight", "1", LocalCopy

        def load(self) -> None:
            self.whole = step(step_graph(config), folder / "run", folder)
            self.whole.load()

        def try_models(self) -> None:
            self.whole.try_models()

        def measure(self, record: SourceRecord) -> LocalCopy:
            return LocalCopy("")

    graph = StepGraph((Alone,), config)
    runner = Runner(graph, ("sight",), folder / "run", folder, RunState([step.name]))
    runner.warm([step.name])
    failure = runner.run(SourceRecord(str(video), "ab" * 16)).failure
    if failure is None:
        return ""
    assert failure.error_type == MACHINE
    return str(stopping_error(failure, folder))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_damaged_model_stops_the_run_in_one_line(name: str, keep: float, tmp_path: Path) -> None:
    step, registered, setting = FILES[name]
    folder = tmp_path / "models"
    shutil.copytree(resolve(registered), folder)
    damaged = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    with damaged.open("r+b") as file:
        file.truncate(int(damaged.stat().st_size * keep))
    line = message_of(step, configured(setting, folder), tmp_path)
    assert line.startswith(f"this machine cannot measure: {step.name} its models cannot be loaded: ")
    assert "no source was charged" in line
    assert "\n" not in line


@pytest.mark.parametrize("step", LOADING_STEPS, ids=lambda step: step.name)
def test_whole_models_are_loaded_and_used(step: type[Step], tmp_path: Path) -> None:
    assert message_of(step, IngestConfig(), tmp_path) == ""


def test_every_step_with_models_tries_them() -> None:
    untried = {step.name for step in LOADING_STEPS if step.try_models is Step.try_models}
    assert untried == {"sync", "cut"}  # no weights unless configured; ffmpeg's self-test


def test_damaged_file_of_the_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resolve("ppocr-det")
    monkeypatch.setattr(weights, "REGISTRY", {"ppocr-det": REGISTRY["ppocr-det"]})
    monkeypatch.setenv("UNIAVGEN_CACHE", str(tmp_path))
    shutil.copytree(whole, cache_folder() / "ppocr-det")
    assert damaged_files() == []
    (file,) = (cache_folder() / "ppocr-det").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert damaged_files() == [file]
    assert f"damaged: {file} (delete it" in message_of(TextStep, IngestConfig(), tmp_path)


def broken_library(folder: Path) -> Path:
    """Half of a real shared library: opening it kills the process (SIGBUS)."""
    package = importlib.util.find_spec("onnxruntime")
    assert package is not None
    assert package.origin is not None
    whole = next((Path(package.origin).parent / "capi").glob("onnxruntime_pybind11_state*.so"))
    broken = folder / "broken.so"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return broken


WORKER = """
import ctypes, sys
from pathlib import Path
from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.loading import ModelLoader
from uniavgen.ingest.engine.step import Step, StepGraph
from uniavgen.shards.errors import UserError

class Opens(Step):
    name, pool, version = "faces", "sight", "1"

    def load(self):
        ctypes.CDLL(sys.argv[2])

folder = Path(sys.argv[1])
try:
    ModelLoader(folder).load(Opens(StepGraph((), IngestConfig()), folder, folder))
except (UserError, OSError) as error:
    print(type(error).__name__, error)
"""


def open_in_process(folder: Path, library: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(folder), str(library)], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout.strip()


def test_library_that_kills_its_process_is_not_opened_forever(tmp_path: Path) -> None:
    library, markers = broken_library(tmp_path), tmp_path / "markers"
    markers.mkdir()
    outcomes = [open_in_process(markers, library) for _ in range(MAX_DEATHS + 1)]
    assert [code < 0 for code, _ in outcomes] == [True] * MAX_DEATHS + [False], outcomes
    assert outcomes[-1] == (0, f"UserError {MAX_DEATHS} workers died while they loaded its models")


def test_killed_workers_do_not_stop_a_run_whose_models_were_loaded(tmp_path: Path) -> None:
    library, markers = broken_library(tmp_path), tmp_path / "markers"
    markers.mkdir()
    whole = ctypes.util.find_library("c")
    assert open_in_process(markers, Path(str(whole))) == (0, "")
    outcomes = [open_in_process(markers, library) for _ in range(MAX_DEATHS + 1)]
    assert all(code < 0 for code, _ in outcomes)
