"""One run of the demo, shared by every test that looks at its output."""

from pathlib import Path

import pytest
from running import Demo, uniavgen
from wheel import install_wheel


@pytest.fixture(scope="session")
def installed_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`uniavgen` of a wheel that was built from this checkout and installed elsewhere."""
    return install_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, installed_program: Path) -> Demo:
    """The demo as the installed wheel runs it, in a folder that holds a user's own train.py and so on."""
    folder = tmp_path_factory.mktemp("demo")
    return Demo(folder, uniavgen("demo", "--folder", folder, program=installed_program))
