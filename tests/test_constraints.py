"""The package asks for what was tested: both sets of pinned versions, and nothing beyond them."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(line) for line in PROJECT["dependencies"]]


def pinned(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(package): Version(version) for package, version in pairs}


OLDEST, NEWEST = pinned("constraints.txt"), pinned("constraints-newest.txt")


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_bounds_are_the_ends_of_what_was_tested(requirement):
    name = canonicalize_name(requirement.name)
    oldest, newest = OLDEST[name], NEWEST[name]
    allowed = requirement.specifier
    assert oldest in allowed and newest in allowed
    bounds = {bound.operator: Version(bound.version) for bound in allowed}
    assert bounds.keys() == {">=", "<"}
    given = len(bounds[">="].release)
    assert bounds[">="].release == oldest.release[:given]
    major, minor = newest.release[:2]
    ends = {Version(f"{major + 1}"), Version(f"{major}.{minor + 1}")}
    if name in ("jax", "flax", "transformers", "numpy") or major == 0:
        ends = {Version(f"{major}.{minor + 1}")}
    assert bounds["<"] in ends


def test_this_python_and_no_later_one():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert ".".join(map(str, sys.version_info[:2])) in allowed
    named = [line.split(" :: ")[-1] for line in PROJECT["classifiers"] if "Python :: 3" in line]
    assert named == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed]
