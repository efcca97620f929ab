"""What stays light: importing the package and asking for help."""

from __future__ import annotations

import subprocess
import sys

import pytest

import expunge
from expunge.cli.app import EXAMPLES

HEAVY = ("torch", "transformers", "pyarrow", "datasets", "pandas", "numpy", "scipy", "peft")
REPORT = f"; import sys; print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"


def loaded_by(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    [
        "import expunge; dir(expunge); expunge.__version__; expunge.RunConfig",
        "from expunge.cli import main; assert main(['--help']) == 0",
        "from expunge.cli import main; assert main(['unlearn', '--help']) == 0",
        "from expunge.cli import main; assert main(['list', 'recipes']) == 0",
        "from expunge.cli import main; assert main(['show', 'training']) == 0",
    ],
    ids=["import", "help", "verb help", "list recipes", "show training"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert loaded_by(code) == "[]"


def test_the_check_itself_can_fail() -> None:
    assert "numpy" in loaded_by("import numpy")


def test_help_takes_less_than_a_second_of_work() -> None:
    # Processor time, not wall-clock time: other processes must not fail this.
    code = (
        "from expunge.cli import main; import time; main(['--help'])\n"
        "import sys; print(time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert float(done.stderr) < 1.0


def test_every_public_name_is_listed_and_lazy() -> None:
    assert set(expunge.__all__) <= set(dir(expunge))
    assert expunge.load_config.__module__ == "expunge.run.resolve"
    with pytest.raises(AttributeError, match="no attribute 'unlern'"):
        expunge.unlern  # noqa: B018


def test_every_verb_has_help_with_examples(expunge_cli) -> None:  # type: ignore[no-untyped-def]
    for verb in EXAMPLES:
        out = expunge_cli(verb, "--help").out
        assert "Examples:" in out
        assert EXAMPLES[verb][0] in out
