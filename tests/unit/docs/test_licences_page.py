"""docs/licences.md beside the installed packages and the registered models."""

import re

import pytest
from licence_names import licence_of
from paths import ROOT

from uniavgen.orchestration.planning.restrictions import NON_COMMERCIAL
from uniavgen.shards.weights import REGISTRY

PAGE = (ROOT / "docs" / "licences.md").read_text()
PACKAGES = PAGE.partition("## Packages")[2]
COPYLEFT = re.compile(r"GPL|NC|proprietary")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages() -> dict[str, str]:
    """Package -> licence on the page."""
    found = {}
    for licence, names in re.findall(r"^\| ([^|]+) \| (.+) \|$", PACKAGES, re.M):
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in found
            found[name] = licence
    return found


def constrained() -> list[str]:
    lines = (ROOT / "orchestration" / "install" / "constraints.txt").read_text().splitlines()
    return [line.partition("==")[0].strip() for line in lines if "==" in line]


def test_every_installed_package_is_listed_with_the_licence_of_its_metadata() -> None:
    listed = {normal(name): licence for name, licence in packages().items()}
    assert listed == {normal(name): licence_of(name) for name in constrained()}
    assert all(listed.values())


def test_every_embedded_model_is_listed_with_its_licence() -> None:
    for name, weights in REGISTRY.items():
        assert f"| `{name}` | {weights.purpose} | {weights.licence} |" in PAGE
        assert weights.licence


@pytest.mark.parametrize("name", [name for name, licence in packages().items() if COPYLEFT.search(licence)])
def test_package_with_obligations_is_named_above_the_tables(name: str) -> None:
    above = PAGE.partition("## Models")[0]
    licence = packages()[name]
    if " OR " in licence:
        return  # another licence may be chosen
    assert f"`{name}`" in above or (name.startswith("nvidia-") and "NVIDIA" in above)


def test_non_commercial_licence_is_the_one_that_the_program_warns_of() -> None:
    table = PAGE.partition("**Not for commercial use.**")[2].partition("- **GPL.**")[0]
    assert table.count(f"| {NON_COMMERCIAL} |") == 3
