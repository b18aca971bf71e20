"""The worked examples of docs/extending.md do what the page says, applied to a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from test_commands_in_docs import FENCE, FLOORS

import uniavgen
from uniavgen.shards.corpus.tables import Corpus

PAGE = ROOT / "docs" / "extending.md"


def section(title: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks below a heading."""
    _, _, rest = PAGE.read_text().partition(f"\n## {title}\n")
    assert rest, f"no section {title!r}"
    return FENCE.findall(re.split(r"^## ", rest, flags=re.MULTILINE)[0])


def apply_edit(repository: Path, edit: str) -> None:
    """Replace the context of an edit, which must occur once in the file that its first line names."""
    first, *lines = edit.splitlines()
    path = repository / first.removeprefix("# ")
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    text = path.read_text()
    assert text.count(before) == 1, f"{first}: this context occurs {text.count(before)} times:\n{before}"
    path.write_text(text.replace(before, after))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the packages; `packages/uniavgen` in it is importable as uniavgen."""
    root = tmp_path / "repository"
    for name in (*FLOORS, "uniavgen"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/factories", "tests/unit/shards", "tests/unit/ingest"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, root / name)
    package = root / "packages" / "uniavgen"
    package.mkdir(parents=True)
    for path in [*(root / "uniavgen").iterdir(), *(root / floor for floor in FLOORS)]:
        (package / path.name).symlink_to(path)
    return root


def apply_section(repository: Path, title: str) -> None:
    """Write the new files and make the edits of a section."""
    for language, text in section(title):
        if language == "diff":
            apply_edit(repository, text)
        elif language == "python":
            path = repository / text.partition("\n")[0].removeprefix("# ")
            assert not path.exists(), path
            path.write_text(text.partition("\n")[2])


def run_in(repository: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(repository / "packages"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=repository, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_code(repository: Path, code: str) -> str:
    return run_in(repository, "-c", textwrap.dedent(code))


def test_the_copy_is_what_runs(repository: Path) -> None:
    module = run_code(repository, "import uniavgen.train.tasks as tasks; print(tasks.__file__)")
    assert Path(module.strip()).resolve().is_relative_to(repository)


def test_an_edit_whose_context_is_gone_fails(repository: Path) -> None:
    with pytest.raises(AssertionError, match="occurs 0 times"):
        apply_edit(repository, "# train/tasks.py\n no such line\n+x = 1\n")


def test_a_rule(
    tmp_path: Path, make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> None:
    changes: list[dict[str, Any]] = [
        {"frozen_ratio": 0.9, "face_height_px": 300.0},
        {"face_height_px": 250.0},
        {"word_count": 30.0, "face_height_px": 300.0},
    ]
    rows = [make_clip(f"s{i}", 0.0, "abc"[i], **change) for i, change in enumerate(changes)]
    policy = tmp_path / "steady.yaml"
    policy.write_text(next(text for language, text in section("A rule") if language == "yaml"))
    table = uniavgen.Corpus(make_corpus(rows).root).decide(policy).table
    reasons = dict(zip(table["clip_id"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert [reasons[row["clip_id"]] for row in rows] == ["", "face_height", "pace"]


def test_a_signal(repository: Path) -> None:
    apply_section(repository, "A signal")
    shown = run_code(
        repository,
        """
        import numpy as np

        from uniavgen.ingest.measures.picture import picture_signals
        from uniavgen.ingest.records import FrameTable
        from uniavgen.shards.corpus.schema import schema

        assert "luma_range" in schema("clips").names
        frames = FrameTable(np.arange(101, dtype=np.float32), np.ones(101, np.float32))
        print(picture_signals(frames, 0, 101)["luma_range"])
        """,
    )
    assert float(shown) == pytest.approx(90)
    tests = [str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "unit").rglob("test_signals.py")]
    tests += ["tests/unit/ingest/measures/test_registry.py"]
    select = "signals_of_all_steps or each_step_fills"
    assert " passed" in run_in(
        repository, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", select, *tests
    )


def test_a_step(repository: Path) -> None:
    apply_section(repository, "A step")
    shown = run_code(
        repository,
        """
        from uniavgen.ingest.config import IngestConfig
        from uniavgen.ingest.engine.step_cache import StepCache
        from uniavgen.ingest.measures.pauses import Pauses, PauseStep
        from uniavgen.ingest.measures.registry import step_graph
        from uniavgen.ingest.records import Proposal, Proposals, SourceRecord, SpokenWord
        from uniavgen.shards.corpus.signals import signals_of

        from pathlib import Path

        graph = step_graph(IngestConfig())
        words = [SpokenWord("a", 0.0, 0.5, 1.0, "A"), SpokenWord("b", 1.25, 1.5, 1.0, "A")]
        record = SourceRecord("/videos/a.mp4", "ab" * 16)
        record.results = {Proposals: Proposals([Proposal(0.0, 2.0, "A", words), Proposal(0.0, 2.0, "", [])])}
        result = PauseStep(graph, Path("run"), Path("corpus")).measure(record)
        cache = StepCache("corpus")
        cache.save(record.source_id, "pauses", graph.keys["pauses"], result)
        assert cache.load(record.source_id, "pauses", graph.keys["pauses"], Pauses) == result
        record.results[Pauses] = result
        assert set(PauseStep.signals(record, 0)) == set(signals_of("pauses"))
        print(result.longest_s)
        """,
    )
    assert shown.strip() == "[0.75, None]"


def test_a_task(repository: Path) -> None:
    apply_section(repository, "A task")
    shown = run_code(
        repository,
        """
        from uniavgen.orchestration.config import load_config
        from uniavgen.shards.errors import UserError
        from uniavgen.train.tasks import Task, clip_condition, describe_tasks

        assert "revoice: audio for a given video" in describe_tasks()
        given = clip_condition(Task.REVOICE, 5, 100, has_voice=True)
        assert (given.latents, given.mels, given.reference_voice) == (5, 0, True)
        config = load_config("tiny", None, ["train.stages.2.tasks={joint: 4, revoice: 1}"])
        print(config.train.stages[2].tasks[Task.REVOICE])
        try:
            clip_condition(Task.REVOICE, 5, 100)
        except UserError as error:
            print(error.kind)
        """,
    )
    assert shown.split() == ["1", "task-needs-voice"]


def test_a_codec(repository: Path) -> None:
    apply_section(repository, "A codec")
    shown = run_code(
        repository,
        """
        from uniavgen.orchestration.config import load_config
        from uniavgen.train.codec.registry import load_codecs

        sets = ["train.data.codecs.caption=hashed-words", "train.model.video.text_dim=64"]
        codecs = load_codecs(load_config("tiny", None, sets).train.data.codecs)
        features, mask = codecs.caption.encode(["A man speaks.", "A man"], 4)
        assert (features[0, :2] == features[1, :2]).all()
        print(tuple(features.shape), mask.sum().item(), codecs.caption.digest)
        """,
    )
    assert shown.split() == ["(2,", "4,", "64)", "5", "hashed-words-1"]


def test_a_model(repository: Path) -> None:
    apply_section(repository, "A model")
    shown = run_code(
        repository,
        """
        import torch

        from uniavgen.orchestration.config import load_config
        from uniavgen.train.model.family import family_of

        norms = []
        for sets in ([], ["train.model.init_scale=0.5"]):
            family = family_of(load_config("tiny", None, sets).train.model)
            torch.manual_seed(0)
            weights = [weight.detach() for weight in family.build(("audio",)).parameters()]
            norms.append(sum(float(weight.norm()) for weight in weights))
        print(type(family).__name__, round(norms[1] / norms[0], 4))
        """,
    )
    assert shown.split() == ["ScaledUniAVGen", "0.5"]
    plan = run_in(repository, "-m", "uniavgen", "plan", "--json", "--set", "train.model.init_scale=0.5")
    assert '"command": "plan"' in plan
    settings = run_in(
        repository, "-m", "uniavgen", "settings", "train", "--set", "train.model.init_scale=0.5"
    )
    assert "init_scale: 0.5" in settings
