"""Errors that list everything, registries that suggest, options read off signatures."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import InputError, MissingExtraError, Problems, did_you_mean
from expunge.core.fingerprint import fingerprint, fingerprint_chunks, fingerprint_folder
from expunge.core.notation import read_value, write_value
from expunge.core.options import REQUIRED, check_options, options_of
from expunge.core.registry import Registry


def test_all_problems_come_in_one_error():
    problems = Problems()
    problems.add("a.b", "first")
    inner = Problems()
    inner.add("c", "second")
    with pytest.raises(InputError) as caught:
        inner.raise_if_any()
    problems.extend(caught.value, where="a")
    with pytest.raises(InputError) as caught:
        problems.raise_if_any("my.yaml")
    assert str(caught.value) == "my.yaml has 2 problems:\n  a.b  first\n  a.c  second"
    assert caught.value.exit_code == 2


def test_nothing_noted_raises_nothing():
    Problems().raise_if_any()
    assert not Problems()


def test_a_missing_extra_names_it():
    assert "pip install 'expunge[wandb]'" in str(MissingExtraError("wandb", "wandb", "tracking"))


def test_suggestions_fold_case():
    assert did_you_mean("npo", ["GA", "NPO"]).startswith("Did you mean NPO?")
    assert did_you_mean("zzz", ["GA", "NPO"]) == "Possible: GA, NPO"


def test_registry_finds_in_any_case_and_discovers_once():
    calls = []
    registry = Registry("thing", discover=lambda: calls.append(1))
    registry.add("Alpha", 1, "first")
    assert registry.get("ALPHA") == registry.get("first") == 1
    assert "alpha" in registry
    assert registry.names() == ["Alpha"]
    assert calls == [1]
    with pytest.raises(InputError, match=r"unknown thing 'alpa'\. Did you mean Alpha"):
        registry.get("alpa")
    with pytest.raises(ValueError, match="twice"):
        registry.add("ALPHA", 2)


@dataclass(frozen=True)
class Settings:
    """Options of a thing.

    Attributes:
        rate: How fast,
            per step.
        kind: Which.
        on: Whether.
    """

    rate: Annotated[float, Gt(0)] = 0.5
    kind: Literal["a", "b"] = "a"
    on: bool = False


def loss(out, *, beta: Annotated[float, Ge(0)], number: int = 3):
    """A loss.

    Args:
        out: The stream.
        beta: Temperature.
    """


def test_options_come_from_signature_and_docstring():
    options = options_of(Settings)
    assert options["rate"].doc == "How fast, per step."
    assert options["rate"].allowed == "a number above 0"
    assert options["kind"].allowed == "one of a, b"
    assert list(options_of(loss)) == ["beta", "number"]
    assert options_of(loss)["beta"].default is REQUIRED


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rate", 0, "number above 0"),
        ("rate", "fast", "'fast' is not allowed"),
        ("rate", float("inf"), "not allowed"),
        ("rate", True, "not allowed"),
        ("kind", "c", "one of a, b"),
        ("on", 1, "true or false"),
        ("rat", 1, "Did you mean rate"),
    ],
)
def test_values_that_are_not_allowed(name, value, message):
    converted, problems = check_options({name: value}, options_of(Settings), owner="thing")
    assert converted == {}
    assert message in problems[0].message


def test_values_are_converted():
    converted, problems = check_options(
        {"rate": 2, "kind": "b", "on": True}, options_of(Settings), owner="thing"
    )
    assert (converted, problems) == ({"rate": 2.0, "kind": "b", "on": True}, [])


@given(st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_values_survive_notation(value):
    back = read_value(write_value(value))
    assert back == value
    assert type(back) is type(value)


def test_fingerprints_tell_content_apart_and_ignore_key_order(tmp_path):
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert fingerprint_chunks([b"ab", b"c"]) != fingerprint_chunks([b"a", b"bc"])
    (tmp_path / "x").write_text("1")
    first = fingerprint_folder(tmp_path)
    (tmp_path / "x").write_text("2")
    assert fingerprint_folder(tmp_path) != first
