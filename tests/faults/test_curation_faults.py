"""Curation killed at random times or on a full disk leaves valid tables, and a re-run completes."""

import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.shards.corpus.tables import Corpus

pytestmark = pytest.mark.slow
Make = Callable[..., Any]
CLIPS = 400


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    draw = random.Random(3)
    rows = [make_clip(f"s{i % 40}", 2.0 * i, f"p{i % 40}", snr_db=draw.uniform(0, 40)) for i in range(CLIPS)]
    made: Corpus = make_corpus(rows[:40])
    made.upsert("clips", rows)
    return made


def command(corpus: Corpus, *words: str) -> list[str]:
    program = "from uniavgen.orchestration.cli import main; main()"
    store = f"tracking.folder={corpus.root.parent / 'mlflow'}"
    return [sys.executable, "-c", program, *words, "--corpus", str(corpus.root), "--set", store]


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def decisions(corpus: Corpus) -> list[dict[str, Any]]:
    return corpus.query("SELECT * FROM decisions ORDER BY clip_id").to_pylist()


@pytest.mark.parametrize("words", [("curate",), ("report",)])
def test_re_run_completes_after_kill_at_random_time(corpus: Corpus, words: tuple[str, ...]) -> None:
    if words == ("report",):
        decide(corpus, load_policy("default"))
    expected = Corpus.create(corpus.root.parent / "undisturbed")
    expected.upsert("clips", corpus.read("clips").to_pylist())
    decide(expected, load_policy("default"))
    draw = random.Random(7)
    for _ in range(3):
        with subprocess.Popen(
            command(corpus, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(draw.uniform(0.3, 4.0))
            process.send_signal(signal.SIGKILL)
        assert len(decisions(corpus)) in (0, CLIPS), "decisions are committed all together"
    done = subprocess.run(command(corpus, *words), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]
    assert decisions(corpus) == decisions(expected)
    assert (corpus.root / "report" / "index.html").is_file() == (words == ("report",))
    assert not list(corpus.root.rglob("*.part"))


def test_full_disk_is_one_line_error_and_old_decisions_stay(corpus: Corpus, tmp_path: Path) -> None:
    """The system refuses files over 4 kB, like a full disk."""
    decide(corpus, load_policy("default"))
    before = decisions(corpus)
    policy = tmp_path / "loose.yaml"
    policy.write_text("name: loose\nrules: [{name: snr, column: snr_db, min: 1, says: some audio}]\n")
    asked = command(corpus, "curate", "--policy", str(policy))
    short = subprocess.run(asked, capture_output=True, text=True, timeout=300, preexec_fn=limit_file_size)
    assert short.returncode == 1
    assert "Traceback" not in short.stderr
    assert [line for line in short.stderr.splitlines() if line.startswith("error: ")], short.stderr[-500:]
    assert decisions(corpus) == before
    assert subprocess.run(asked, capture_output=True, timeout=300).returncode == 0
    assert decisions(corpus) != before
