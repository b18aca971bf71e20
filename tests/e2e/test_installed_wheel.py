"""The installed wheel holds everything that the commands read."""

import subprocess
from pathlib import Path

import pytest
from running import current_folder, uniavgen

import uniavgen as package

pytestmark = pytest.mark.slow


def run(program: Path, *words: str) -> str:
    done = subprocess.run(
        [str(program), *words], capture_output=True, text=True, timeout=120, cwd=current_folder(), check=True
    )
    return done.stdout


def test_wheel_reports_the_version(installed_program: Path) -> None:
    assert run(installed_program, "--version").split()[-1] == package.__version__


def test_wheel_imports_only_its_own_code(installed_program: Path) -> None:
    python = installed_program.parent / "python"
    code = "import uniavgen.train.model.config as module; print(module.__file__)"
    done = subprocess.run(
        [str(python), "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(installed_program.parents[1])


@pytest.mark.parametrize("preset", ["tiny", "laptop", "paper"])
def test_wheel_holds_the_presets(installed_program: Path, preset: str) -> None:
    assert "zero_stage" in run(installed_program, "settings", "train.deepspeed", "--preset", preset)


def test_wheel_holds_policies_prompts_and_templates(installed_program: Path) -> None:
    library = next((installed_program.parents[1] / "lib").glob("python*")) / "site-packages" / "uniavgen"
    checkout = Path(package.__path__[0]).parent
    for folder in (
        "curation/policy/policies",
        "curation/captions/prompts",
        "curation/report/templates",
        "orchestration/presets",
    ):
        wanted = {path.name for path in (checkout / folder).iterdir() if path.is_file()}
        assert wanted
        assert {path.name for path in (library / folder).iterdir() if path.is_file()} == wanted


def test_wheel_plans_the_paper_model(installed_program: Path) -> None:
    assert (
        uniavgen("plan", "--preset", "paper", "--gpus", "8", program=installed_program)["command"] == "plan"
    )
