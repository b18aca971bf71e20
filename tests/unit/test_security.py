"""SECURITY.md: every line names tests that exist; and the tests that have no other place."""

import ast
import os
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from made_runs import SMALL_MODEL, small_config
from paths import ROOT

from uniavgen.curation.policy.rules import load_policy
from uniavgen.ingest.models.published_networks import load_published
from uniavgen.orchestration.commands.submit import FORWARDED_VARIABLES
from uniavgen.orchestration.commands.ui import server_arguments
from uniavgen.orchestration.config import known_keys, load_config
from uniavgen.orchestration.plan_runs.plan_file import read_plan
from uniavgen.orchestration.process import use_writable_home
from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.checkpoint.trained_model import load_trained
from uniavgen.train.config import tiny_stages

PAGE = (ROOT / "SECURITY.md").read_text()
ROWS = [line for line in PAGE.splitlines() if re.match(r"^\| (?!threat|---)", line)]


@cache
def names_of_tests(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:50])
def test_every_threat_has_a_test_that_exists(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
    assert named
    for path, name in named:
        assert name in names_of_tests(path), f"{path} has no {name}"


def test_page_covers_the_five_threats() -> None:
    headings = re.findall(r"^### (.+)$", PAGE, re.M)
    assert headings == [
        "A hostile video",
        "A hostile shard",
        "A hostile checkpoint or model",
        "A hostile configuration",
        "A shared machine or cluster",
    ]
    assert len(ROWS) >= 20


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def test_canary_detects_a_pickle_that_runs(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()


def test_pickled_weights_run_no_code(tmp_path: Path) -> None:
    import torch

    canary = tmp_path / "canary"
    for name, write in (
        ("plain", lambda path: path.write_bytes(pickle.dumps({"weight": Bomb(canary)}))),
        ("torch", lambda path: torch.save({"weight": Bomb(canary)}, path)),
    ):
        path = tmp_path / name
        write(path)
        with pytest.raises(UserError, match="weights") as caught:
            load_published(torch.nn.Linear(1, 1), str(path), "ingest.sync.syncnet_weights")
        assert caught.value.kind == "wrong-weights"
    assert not canary.exists()


def test_pickled_model_of_a_run_runs_no_code(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "run", "joint")
    config = small_config(tiny_stages()).model_copy(update={"model": SMALL_MODEL})
    stage.write(done=True, config=config.model_dump(mode="json"))
    stage.weights.write_bytes(pickle.dumps({"weight": Bomb(tmp_path / "canary")}))
    with pytest.raises(UserError):
        load_trained(tmp_path / "run")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "read",
    [
        lambda path: load_config("tiny", path),
        lambda path: read_plan(path),
        lambda path: load_policy(str(path)),
        lambda path: load_config("tiny", None, [f"curate.policy={path.read_text().strip()}"]),
    ],
    ids=["configuration", "plan", "policy", "assignment"],
)
@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{canary}]",
        "!!python/object/new:os.mkdir [{canary}]",
        "!!python/name:os.mkdir",
        "!mkdir {canary}",
    ],
)
def test_yaml_runs_no_code(read: Callable[[Path], Any], value: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "hostile.yaml"
    for text in ("{value}", "name: {value}", "rules: [{value}]"):
        path.write_text(text.format(value=value.format(canary=canary)) + "\n")
        with suppress(UserError):
            read(path)
    assert not canary.exists()


def test_mlflow_listens_on_loopback_only() -> None:
    arguments = server_arguments("sqlite:////data/mlflow.db", 5000)
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"


def test_submit_forwards_no_secret() -> None:
    assert set(FORWARDED_VARIABLES) == {"MLFLOW_TRACKING_URI"}


def test_no_setting_holds_a_secret() -> None:
    """Settings are printed, stored in plans and logged to MLflow: they may name a variable, and no secret."""
    suspicious = [key for key in known_keys() if re.search(r"secret|passw|token$|api_?key|credential", key)]
    assert suspicious == ["caption.api_key_variable"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_home_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setenv("HOME", "/proc/nohome")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    theirs = tmp_path / f"uniavgen-home-{os.getuid()}"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    use_writable_home()
    assert os.environ["HOME"] == "/proc/nohome"
