import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def pins() -> dict[str, str]:
    """Name -> version of requirements.txt; a line that is no exact pin fails here."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["dev"]]
    found = {r.name: pins().get(canonicalize_name(r.name), "none") for r in wanted}
    assert {name for name, version in found.items() if version == "none"} == set()
    assert all(r.specifier.contains(found[r.name]) for r in wanted), found


def test_pins_are_of_the_public_index_and_of_any_machine() -> None:
    assert not [f"{name}=={version}" for name, version in pins().items() if "+" in version]
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton", "eo-ssl", "geobench"))]
    assert pins()["torch"] == "2.13.0"
