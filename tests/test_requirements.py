"""What is installed: the pins of the requirement files against the ranges of pyproject.toml."""

import tomllib

import yaml
from packaging.requirements import Requirement

from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(*names: str) -> dict[str, str]:
    """The versions that requirement files pin, by the names of the packages."""
    lines = (line.partition("#")[0].strip() for name in names for line in (ROOT / name).read_text().splitlines())
    requirements = [Requirement(line) for line in lines if "==" in line]
    return {requirement.name: str(requirement.specifier).removeprefix("==") for requirement in requirements}


def test_every_dependency_is_pinned_within_its_range():
    """What CI and the Space install is what pyproject.toml allows, and nothing else."""
    extras = PROJECT["optional-dependencies"]
    for files, requirements in (
        (("requirements.txt",), PROJECT["dependencies"]),
        (("requirements-dev.txt",), extras["dev"] + extras["ray"]),
    ):
        pinned = pins(*files)
        assert pinned.keys() == {Requirement(requirement).name for requirement in requirements}
        for requirement in map(Requirement, requirements):
            assert pinned[requirement.name] in requirement.specifier, requirement
    for name, pinned in pins("requirements-serve.txt").items():
        [requirement] = [r for r in map(Requirement, PROJECT["dependencies"] + extras["serve"]) if r.name == name]
        assert pinned in requirement.specifier, requirement


def test_pre_commit_runs_the_ruff_of_ci():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    [revision] = [repository["rev"] for repository in repositories if "ruff" in repository["repo"]]
    assert revision.removeprefix("v") == pins("requirements-dev.txt")["ruff"]
