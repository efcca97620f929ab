"""The README and the pages under docs: links lead somewhere, commands parse, marked examples run.

A line `<!-- runnable -->` before a fenced block has it executed, in a folder with a tiny `model`,
`forget.jsonl` and `retain.jsonl`; the blocks of a page run one after the other in one folder.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda page: page.as_posix()
)
_FENCE = re.compile(
    r"^(?P<mark><!-- runnable -->\n)?```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?) *#*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    runnable: bool

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            language=match["language"],
            text=match["text"],
            runnable=bool(match["mark"]),
        )


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


# --- links ---


def slugs(page: Path) -> set[str]:
    """Anchors of a page as GitHub makes them: lower case, no punctuation, spaces to hyphens."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in _HEADING.findall(prose)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in _LINK.finditer(prose):
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name_of(page)} links to {target}, which does not exist"
        assert ROOT in (file, *file.parents), f"{name_of(page)} links out of the repository"
        if anchor:
            assert anchor in slugs(file), f"{name_of(page)}: {name_of(file)} has no #{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
        targets = [match["target"].partition("#")[0] for match in _LINK.finditer(prose)]
        queue += [(page.parent / t).resolve() for t in targets if t and ":" not in t]
    lost = sorted(name_of(page) for page in set(PAGES) - seen)
    assert not lost


# --- commands ---


def commands(block: Block) -> Iterator[list[str]]:
    """Every expunge command of a shell block as a list of words, without the program's name."""
    joined = block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        if block.language == "console" and not line.startswith("$ "):
            continue  # what the command printed
        words = shlex.split(line.removeprefix("$ "), comments=True)
        words = words[: words.index(">")] if ">" in words else words
        if "-m" in words and "expunge" in words[words.index("-m") :]:
            words = words[words.index("-m") + 1 :]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0].rpartition("/")[2] == "expunge":
            yield words[1:]


USAGE_ERROR: Any = typer.BadParameter.__base__
SHELL = [b for b in ALL_BLOCKS if b.language in ("bash", "console", "sh", "shell")]
COMMANDS = [(block, words) for block in SHELL for words in commands(block)]


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 10
    example = Block(
        page=ROOT / "README.md",
        line=1,
        language="bash",
        runnable=False,
        text="make demo\nA=1 .venv/bin/expunge unlearn x.yaml \\\n  --seed 1  # why\n"
        "torchrun --nproc_per_node 2 -m expunge check y.yaml > out\n",
    )
    expected = [["unlearn", "x.yaml", "--seed", "1"], ["check", "y.yaml"]]
    assert list(commands(example)) == expected


def free() -> set[str]:
    """Sections whose keys are the user's or a method's own, such as evaluation.options."""
    from expunge.run.config import keys

    return {key.path for key in keys() if get_origin(key.field.annotation) is dict}


def test_sections_of_free_keys_are_found() -> None:
    some = {f"method.{part}" for part in ("forget", "retain", "wrapper", "post")}
    assert free() >= {*some, "evaluation.options", "evaluation.also", "evaluation.rows"}
    assert "evaluation" not in free()


def parse(words: list[str]) -> dict[str, Any]:
    """Parse without running; an unknown verb or flag, or a missing argument, raises."""
    from typer.main import get_command

    from expunge.cli.app import app

    command: Any = get_command(app)
    context = command.make_context("expunge", [], resilient_parsing=True)
    rest = list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, f"no verb {name}"
        command = command.commands[name]
        is_group = hasattr(command, "commands")
        context = command.make_context(
            name, [] if is_group else list(rest), parent=context, resilient_parsing=is_group
        )
    return dict(context.params)


@pytest.mark.parametrize(
    ("block", "words"), COMMANDS, ids=[f"{b}: {' '.join(w)[:50]}" for b, w in COMMANDS]
)
def test_commands_parse(block: Block, words: list[str]) -> None:
    from expunge.methods import parse as parse_method
    from expunge.run.config import keys
    from expunge.run.recipes import recipe_names

    if words in ([], ["--help"], ["--version"]):
        return
    values = parse(words)
    if values.get("method"):
        parse_method(values["method"])
    known = {key.path for key in keys()}
    for text in values.get("overrides") or values.get("arguments") or ():
        key, assigned, _ = text.partition("=")
        if assigned:
            assert key in known or key.rpartition(".")[0] in free(), f"no key {key}"
        elif not text.endswith((".yaml", ".yml")):
            assert text in recipe_names(), f"no recipe {text}"


@pytest.mark.parametrize("words", [["unlern"], ["unlearn", "--sed", "1"], ["evaluate"]])
def test_a_wrong_command_would_be_found(words: list[str]) -> None:
    with pytest.raises((AssertionError, USAGE_ERROR)):
        parse(words)


# --- examples ---


PYTHON = [block for block in ALL_BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_are_python(block: Block) -> None:
    ast.parse(block.text)


RUNNABLE = sorted({block.page for block in ALL_BLOCKS if block.runnable})


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_marked_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if not block.runnable:
            continue
        if block.language == "python":
            code = compile("\n" * block.line + block.text, name_of(page), "exec")
            exec(code, namespace)
        else:
            for words in commands(block):
                run_command(words, str(block))


def run_command(words: list[str], where: str) -> None:
    from expunge.cli import main

    assert main(words) == 0, f"{where}: expunge {shlex.join(words)} ended with an error"


def prepare(folder: Path) -> None:
    from expunge.models.export import save_model
    from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

    facts = toy_facts(24)
    for name, rows in (("forget", facts[:4]), ("retain", facts[4:])):
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = tiny_tokenizer()
    save_model(folder / "model", tiny_model(tokenizer), tokenizer, "# A tiny model\n")
