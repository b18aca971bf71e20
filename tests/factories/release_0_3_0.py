"""A corpus and a run made by release 0.3.0, whose code comes from this repository's history.

Kept in pytest's cache folder; `make_release_output` says how it is made. It needs the history (a full clone).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from made_videos import speaking_face
from paths import ROOT

COMMIT = "2691f5c"
"""Release 0.3.0, with the packages at the top level."""

POLICY = """
name: everything
rules:
  - {name: length, column: duration_s, min: 0.5, says: the clip lasts half a second}
"""

SPLIT = ("--set", "curate.split.val_share=0.5", "--set", "curate.split.people_by=[voice]")
"""One of the two voices goes to val; both videos show the same face."""

TRAINING = """
train:
  workers: 1
  fixed_steps: 1
  trace: true
  model:
    video: {dim: 32, layers: 2, heads: 2, ffn_dim: 64, text_dim: 384, freq_dim: 32}
    audio: {dim: 32, layers: 2, heads: 2, ffn_dim: 64, text_dim: 16, freq_dim: 32}
    speech_text: {dim: 16, layers: 1}
  data: {frames: 13, height: 64, width: 64, reference_frames: 5, caption_tokens: 12}
  checkpoint: {every: 10, keep: 9}
  stages:
    - {name: joint, steps: 60, batch: 2}
"""


@dataclass(frozen=True)
class ReleaseOutput:
    """What release 0.3.0 wrote. Tests work on copies; the videos stay where the corpus names them."""

    folder: Path

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def straight(self) -> Path:
        """Run folder: 60 steps without a break."""
        return self.folder / "straight"

    @property
    def interrupted(self) -> Path:
        """Run folder: killed with -9 after its first checkpoint."""
        return self.folder / "interrupted"

    @property
    def policy(self) -> Path:
        return self.folder / "policy.yaml"

    @property
    def training(self) -> Path:
        return self.folder / "training.yaml"

    @property
    def tracking(self) -> tuple[str, str]:
        return "--set", f"tracking.folder={self.folder / 'mlflow'}"


def history_is_available() -> bool:
    """Whether this checkout's history holds the release."""
    command = ["git", "-C", str(ROOT), "cat-file", "-e", f"{COMMIT}^{{commit}}"]
    return shutil.which("git") is not None and subprocess.run(command, capture_output=True).returncode == 0


def make_release_output(folder: Path) -> ReleaseOutput:
    """Make it in `folder`, or use what an earlier call completed there. Takes two minutes on two cores."""
    made = ReleaseOutput(folder)
    if (folder / "complete").exists():
        return made
    shutil.rmtree(folder, ignore_errors=True)
    made.videos.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", COMMIT], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder / "code", filter="data")
    made.policy.write_text(POLICY)
    made.training.write_text(TRAINING)
    # two voices, so that one can go to val
    speaking_face(made.videos / "one.mp4", start_s=11.2, seconds=3.0)
    speaking_face(made.videos / "two.mp4", start_s=22.0, seconds=3.5)
    corpus = ("--corpus", made.corpus)
    _run_release(made, "ingest", made.videos, *corpus)
    _run_release(made, "curate", *corpus, "--policy", made.policy, *SPLIT)
    _run_release(made, "shard", *corpus)
    _run_release(made, *training_words(made, made.straight))
    _run_release_until_checkpoint(made, made.interrupted)
    _run_release(made, "export", "--run", made.straight, "--out", folder / "export")
    (folder / "complete").touch()
    return made


def training_words(made: ReleaseOutput, run: Path) -> tuple[object, ...]:
    return ("train", "joint", "--corpus", made.corpus, "--run", run, "--config", made.training)


def _release_process(made: ReleaseOutput, words: tuple[object, ...]) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", "from orchestration.cli import main; main()"]
    return subprocess.Popen(
        [*command, *map(str, words), *made.tracking, "--json"],
        env={**os.environ, "PYTHONPATH": str(made.folder / "code")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=made.folder / "code",
    )


def _run_release(made: ReleaseOutput, *words: object) -> None:
    process = _release_process(made, words)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, f"release 0.3.0, {words[0]}: {errors[-3000:]}"


def _run_release_until_checkpoint(made: ReleaseOutput, run: Path) -> None:
    process = _release_process(made, training_words(made, run))
    checkpoints = run / "joint" / "checkpoints"
    until = time.monotonic() + 300
    while (
        not any(checkpoints.glob("step-*/manifest.json"))
        and process.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    ended = (
        json.loads((run / "joint" / "stage.json").read_text())
        if (run / "joint" / "stage.json").exists()
        else {}
    )
    assert any(checkpoints.glob("step-*/manifest.json")), "no checkpoint was made"
    assert not ended.get("done"), "the training ended before it was killed"
