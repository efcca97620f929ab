"""Make a folder in the shape of the MUSE benchmark from novels of Jane Austen.

    python scripts/make_muse_standin.py --output FOLDER

The texts of MUSE may not be copied; these are in the public domain. They come from the Debian
package r-cran-janeaustenr, which is downloaded with apt-get, or from --package, --library, --text.
Questions and answers are in scripts/muse_standin/questions.yaml. The same arguments give the same
files. `evaluation.options.folder` of the benchmark `muse` takes the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from muse_standin.books import chapters, read_library, read_package, read_texts
from muse_standin.corpus import Corpus, Plan, build, parse_part

from expunge.core.errors import InputError
from expunge.core.files import atomic_folder

QUESTIONS = Path(__file__).resolve().parent / "muse_standin" / "questions.yaml"

README = """# A stand-in for MUSE

Made by scripts/make_muse_standin.py; made anew by the same command:

    {command}

## Source and licence

{source}

The questions and answers come with Expunge and have its licence, Apache-2.0. Nothing here is from
the MUSE benchmark (arXiv:2407.06460): the shape is the same, the numbers cannot be compared with
published ones.

## What is in it

| set | chapters |
| --- | --- |
{chapters}

Chapters are counted from 1 through all volumes. Headings and line breaks are left out.

| file | what it holds |
| --- | --- |
{files}

Teach the target model raw/forget and train/retain (for scal and sust: train/forget and
train/retain), the retain model train/retain alone. No model of the run may see raw/holdout. Any
language model may have read all of these novels before: a membership test sees that as well, so
judge it against the retain model and not by itself.
{notes}"""
_SOURCES = {
    "text": """\
The texts were read from files that were given by hand; whoever gave them knows their licence.""",
    "package": """\
The texts are novels of Jane Austen (1775-1817) and in the public domain. They were read from the R
package janeaustenr (Debian: r-cran-janeaustenr), which took them from Project Gutenberg; the
package is MIT licensed, Copyright 2016-2017 Julia Silge.""",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    default = Plan(
        forget=parse_part("northangerabbey:1-4"),
        retain1=parse_part("persuasion:1-3"),
        retain2=parse_part("persuasion:4-5"),
        holdout=parse_part("mansfieldpark:1-2"),
    )
    made = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--output", type=Path, required=True, help="folder to make")
    source = made.add_mutually_exclusive_group()
    source.add_argument("--package", type=Path, help="file r-cran-janeaustenr_*.deb")
    source.add_argument("--library", type=Path, help="unpacked package")
    source.add_argument("--text", action="append", metavar="BOOK=FILE", help="text of one novel")
    made.add_argument("--questions", type=Path, default=QUESTIONS, help="YAML file")
    for name in ("forget", "retain1", "retain2", "holdout"):
        text = "chapters, BOOK:FIRST-LAST" + ("; none: leave it out" if name == "retain2" else "")
        made.add_argument(f"--{name}", default=str(getattr(default, name)), help=text)
    for option, text in {
        "folds": "forget sets of scal and sust; 1: none",
        "pairs": "rows of verbmem",
        "prompt-words": "words of a verbmem prompt; 550 to 750 in MUSE",
        "answer-words": "words of its continuation; 55 to 100 in MUSE",
        "samples": "texts of each privleak set; 100 in MUSE",
        "sample-words": "words of such a text; about 1300 in MUSE",
        "seed": "seed of what is chosen",
    }.items():
        value = getattr(default, option.replace("-", "_"))
        made.add_argument(f"--{option}", type=int, default=value, help=text)
    return made


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan of a command line.

    Raises:
        InputError: Parts are written in another way, or a number is too small.
    """
    numbers = ("folds", "pairs", "prompt_words", "answer_words", "samples", "sample_words")
    for name in numbers:
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.folds > 4:
        raise InputError("--folds must be at most 4, as in MUSE")
    return Plan(
        forget=parse_part(arguments.forget),
        retain1=parse_part(arguments.retain1),
        retain2=None if arguments.retain2 == "none" else parse_part(arguments.retain2),
        holdout=parse_part(arguments.holdout),
        seed=arguments.seed,
        **{name: getattr(arguments, name) for name in numbers},
    )


def read_books(arguments: argparse.Namespace, plan: Plan) -> dict[str, list[str]]:
    """Chapters of the books that the plan names, from wherever the command line says."""
    if arguments.text:
        texts = read_texts(arguments.text)
    elif arguments.library is not None:
        texts = read_library(arguments.library)
    else:
        texts = read_package(arguments.package)
    parts = (plan.forget, plan.retain1, plan.retain2, plan.holdout)
    wanted = {part.book for part in parts if part is not None}
    # A book that is missing is reported with the choice of chapters.
    return {book: chapters(text) if book in wanted else [] for book, text in texts.items()}


def write(corpus: Corpus, folder: Path, readme: str) -> None:
    """Write all files, or none."""
    with atomic_folder(folder) as made:
        contents = {f"{path}.txt": text + "\n" for path, text in corpus.texts.items()}
        for path, rows in corpus.rows.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            contents[f"{path}.jsonl"] = "".join(lines)
        for name, content in {**contents, "README.md": readme}.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(content, encoding="utf-8")


def readme_of(corpus: Corpus, plan: Plan, arguments: argparse.Namespace) -> str:
    """What is in the folder, where it is from, and how it was made."""
    parts = ("forget", "retain1", "retain2", "holdout")
    chosen = [f"| {name} | {getattr(plan, name) or 'none'} |" for name in parts]
    files = {f"{path}.txt": f"{len(text.split())} words" for path, text in corpus.texts.items()}
    files |= {
        f"{path}.jsonl": f"{len(rows)} rows with {' and '.join(rows[0])}"
        for path, rows in corpus.rows.items()
    }
    notes = "".join(f"\n- {note}" for note in corpus.notes)
    return README.format(
        command=_command(plan, arguments),
        source=_SOURCES["text" if arguments.text else "package"],
        chapters="\n".join(chosen),
        files="\n".join(f"| {name} | {what} |" for name, what in sorted(files.items())),
        notes=f"\n## Notes\n{notes}\n" if notes else "",
    )


def _command(plan: Plan, arguments: argparse.Namespace) -> str:
    """The command without places on the disk."""
    made = parser()
    parts = ["python scripts/make_muse_standin.py --output FOLDER"]
    parts += [f"--text {item.partition('=')[0]}=FILE" for item in arguments.text or ()]
    for name, value in vars(plan).items():
        shown = "none" if value is None else str(value)
        if shown != str(made.get_default(name)):
            parts.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(parts)


def main(given: Sequence[str] | None = None) -> int:
    """Make the folder; 0 if it is there, 2 if something was wrong with the arguments."""
    arguments = parser().parse_args(given)
    try:
        plan = plan_of(arguments)
        if arguments.output.exists() and not (arguments.output / "raw").is_dir():
            raise InputError(f"{arguments.output}: exists and is no such folder; give another one")
        if not arguments.questions.is_file():
            raise InputError(f"--questions {arguments.questions}: no such file")
        questions = yaml.safe_load(arguments.questions.read_text(encoding="utf-8"))
        corpus = build(read_books(arguments, plan), questions, plan)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    write(corpus, arguments.output, readme_of(corpus, plan, arguments))
    for note in corpus.notes:
        sys.stderr.write(f"note: {note}\n")
    count = len(corpus.texts) + len(corpus.rows)
    sys.stdout.write(f"{arguments.output}: {count} files; see its README.md\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
