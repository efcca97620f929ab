"""What ships is complete, and versions agree wherever they are written."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pinned}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *extras["demo"], *extras["dev"]]
    return [r for r in map(Requirement, texts) if r.name != "expunge"]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_constraints_pin_every_requirement_within_its_range(requirement: Requirement) -> None:
    pinned = pins()
    assert normal(requirement.name) in pinned
    assert requirement.specifier.contains(pinned[normal(requirement.name)])


def test_constraints_fit_every_platform() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==[\d.]+$", text, re.MULTILINE), "a build tag fits one index only"
    assert "@ " not in text
    assert "expunge" not in pins()


def test_every_data_file_of_the_package_is_declared() -> None:
    package = ROOT / "src" / "expunge"
    declared = PROJECT["tool"]["setuptools"]["package-data"]["expunge"]
    shipped = {file for pattern in declared for file in package.glob(pattern)}
    present = {
        file
        for file in package.rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc") and file.name[0] != "."
    }
    assert sorted(present - shipped) == []
    assert package / "py.typed" in shipped


def test_licences_are_there() -> None:
    for name in PROJECT["project"]["license-files"]:
        assert (ROOT / name).is_file()
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_version_is_one() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert citation["license"] == PROJECT["project"]["license"]


def test_the_wheel_named_in_messages_is_the_pinned_one() -> None:
    from expunge.models import builtin

    name, version = builtin._WHEEL.split("==")
    assert pins()[normal(name)] == version
    assert f"{name}=={version}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert version in builtin._FOLDER


def test_the_makefile_names_no_place_of_a_machine() -> None:
    for name in ("Makefile", ".ci/run", ".pre-commit-config.yaml", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.$)])/(?:home|root|work|tmp|opt|usr)\b(?!/bin/env)", text), (
            name
        )


def test_make_knows_what_it_would_do() -> None:
    """Targets chain up to the two commands; nothing runs."""
    # Under `make test` the outer make would hand its own flags and variables on.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for target, last in (
        ("demo", "expunge demo"),
        ("test", "-m pytest"),
        ("perf", "perf/run.py --vs naive"),
    ):
        done = subprocess.run(
            ["make", "--dry-run", "--always-make", "--no-print-directory", target],
            cwd=ROOT,
            env=clean,
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        assert last in lines[-1]
        assert any("install" in line and "constraints.txt" in line for line in lines)
