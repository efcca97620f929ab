"""MUSE: what is left of text that was to be forgotten, word by word, as knowledge, as a trace.

arXiv:2407.06460. Criteria and where they are found in results: C1 verbatim memorisation,
`verbmem/rouge_l_f1`; C2 knowledge memorisation, `knowmem_forget/rouge_l_f1`; C3 privacy leakage,
`privleak`; C4 utility, `knowmem_retain/rouge_l_f1`. C5 and C6, scalability and sustainability, are
the same numbers after unlearning the sets of `scalability_sets` and `sustainability_sets` in
`expunge.data.muse`. Texts come from a folder or the hub, see there.

MUSE prints ROUGE-L F1 times 100, and so do we; open-unlearning prints 0..1. Stripping the output,
as open-unlearning does, changes no ROUGE value: the scorer sees words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from expunge.benchmarks import Aggregate, Benchmark, Measure, Preset, register
from expunge.core.errors import InputError, did_you_mean
from expunge.core.results import Better
from expunge.data.muse import MuseCorpus, knowmem_prompt, load_muse
from expunge.data.rows import Message, Row, RowSet, row_set
from expunge.evaluation.probes import Probe, first_rows

PARTS = ("verbmem", "knowmem", "privleak")
PROBES = (
    "verbmem",
    "knowmem_forget",
    "knowmem_retain",
    "privleak_forget",
    "privleak_retain",
    "privleak_holdout",
)

VERBMEM_TOKENS = 128
"""Tokens of a continuation, and of its reference with the beginning-of-sequence token."""
KNOWMEM_TOKENS = 32
CUT_AT = ("\n\n", "\nQuestion", "Question:")
"""An answer ends where the next example would begin."""
TEXT_TOKENS = 2048
"""Longer privleak texts are cut; the published ones have fewer in the model they were made for."""

PUBLISHED_RETAIN_AUC: Mapping[str, float] = {"news": 0.4772, "books": 0.5393}
"""Min-40% AUC of MUSE's own retrained models, 1 = the holdout set looks like training data."""

VERBMEM_FORMS = ("muse", "open_unlearning")
_OPTIONS = {
    "folder": "folder in the layout of MUSE, or muse-bench/MUSE-News or muse-bench/MUSE-Books",
    "verbmem_form": "form of verbatim memorisation. muse: the continuation is cut to "
    f"{VERBMEM_TOKENS} tokens with the beginning one; open_unlearning: it is whole, and a space "
    "stands between it and the prompt",
}


def build_probes(
    forget: RowSet,
    retain: RowSet | None = None,
    *,
    rows: Mapping[str, int | None],
    options: Mapping[str, Any] | None = None,
) -> list[Probe]:
    """The probes whose files the folder has.

    Args:
        forget: Not read; what is asked about it is in the folder.
        retain: Not read either.
        rows: First rows of each probe to use; None or absent: all. The examples that are shown
            before a question are always all (10 in MUSE).
        options: `folder` and `verbmem_form`, see the benchmark.

    Raises:
        InputError: No folder, an unknown option, or files that are missing or damaged.
    """
    chosen = _check_options(options or {})
    corpus = load_muse(chosen["folder"], parts=PARTS)
    probes = [
        _verbmem(corpus, chosen.get("verbmem_form", VERBMEM_FORMS[0])),
        *(_knowmem(corpus, side) for side in ("forget", "retain")),
        *(_privleak(corpus, name) for name in ("forget", "retain", "holdout")),
    ]
    return [
        replace(probe, rows=first_rows(probe.rows, rows.get(probe.name)))
        for probe in probes
        if probe is not None
    ]


def _check_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in options:
        if name not in _OPTIONS:
            raise InputError(f"muse has no option {name!r}. {did_you_mean(name, list(_OPTIONS))}")
    if not options.get("folder"):
        raise InputError(
            f"muse needs evaluation.options.folder: a {_OPTIONS['folder']}. "
            f"scripts/make_muse_standin.py makes one from texts that anyone may use"
        )
    form = options.get("verbmem_form", VERBMEM_FORMS[0])
    if form not in VERBMEM_FORMS:
        possible = did_you_mean(str(form), VERBMEM_FORMS)
        raise InputError(f"evaluation.options.verbmem_form is {form!r}. {possible}")
    return options


def _verbmem(corpus: MuseCorpus, form: str) -> Probe | None:
    found = corpus.find("verbmem/forget")
    if found is None:
        return None
    if form == "open_unlearning":
        spaced = [replace(row, answer=f" {row.answer}") for row in found]
        found = row_set(spaced, name=found.name, origin=found.origin)
    return Probe(
        name="verbmem",
        rows=replace(found, name="verbmem"),
        variants=False,
        continuation=True,
        max_new_tokens=VERBMEM_TOKENS,
        # The limit counts the beginning-of-sequence token, the field does not.
        reference_tokens=VERBMEM_TOKENS if form == "muse" else None,
    )


def _knowmem(corpus: MuseCorpus, side: str) -> Probe | None:
    questions = corpus.find(f"knowmem/{side}_qa")
    examples = corpus.find(f"knowmem/{side}_qa_icl")
    if questions is None or examples is None:
        return None

    def ask(row: Row) -> Row:
        prompt = knowmem_prompt(examples, row.question)
        fields = {**row.fields, "asked": row.question}
        return replace(row, messages=(Message(role="user", content=prompt),), fields=fields)

    origin = f"{questions.origin}, after {len(examples)} examples"
    name = f"knowmem_{side}"
    return Probe(
        name=name,
        rows=row_set(map(ask, questions), name=name, origin=origin),
        variants=False,
        continuation=True,
        max_new_tokens=KNOWMEM_TOKENS,
        cut_at=CUT_AT,
    )


def _privleak(corpus: MuseCorpus, which: str) -> Probe | None:
    found = corpus.find(f"privleak/{which}")
    if found is None:
        return None
    name = f"privleak_{which}"
    return Probe(name=name, rows=replace(found, name=name), generate=False, variants=False)


def first_below(knowmem: Sequence[float | None], retain_knowmem: float) -> int | None:
    """The checkpoint that MUSE selects (section 4): the first that knows no more than it should.

    Args:
        knowmem: Knowledge memorisation of the forget set by checkpoint, or by growing alpha; None
            and nan are passed over.
        retain_knowmem: That of the retain model.

    Returns:
        Its position; None if no checkpoint is at or below the retain model.
    """
    for position, value in enumerate(knowmem):
        if value is not None and value <= retain_knowmem:
            return position
    return None


def published_retain_auc(corpus: str) -> float:
    """AUC of MUSE's retrained model in our orientation, 1 = the forget set looks like members.

    Args:
        corpus: "news" or "books".

    Raises:
        InputError: Another corpus: there is no published number for it.
    """
    if corpus not in PUBLISHED_RETAIN_AUC:
        possible = did_you_mean(corpus, list(PUBLISHED_RETAIN_AUC))
        raise InputError(f"no published retain AUC for {corpus!r}. {possible}")
    return 1.0 - PUBLISHED_RETAIN_AUC[corpus]


def _overlap(probe: str, title: str, better: Better) -> Measure:
    return Measure(
        name="rouge_l_f1",
        probe=probe,
        metric="rouge_l_f1",
        better=better,
        unit=f"{title}: ROUGE-L F1 x 100",
        scale=100.0,
    )


def _length(probe: str) -> Measure:
    return Measure(
        name="generated_tokens",
        probe=probe,
        metric="generated_tokens",
        better="none",
        unit="tokens",
    )


def _share(name: str, unit: str) -> Measure:
    return Measure(name=name, probe="verbmem", metric=name, better="lower", unit=unit)


MEASURES = (
    _overlap("verbmem", "VerbMem", "lower"),
    _overlap("knowmem_forget", "KnowMem", "lower"),
    _overlap("knowmem_retain", "UtilPres", "higher"),
    _share("exact_memorization", "share of tokens"),
    _share("extraction_strength", "share of the continuation"),
    *(_length(probe) for probe in ("verbmem", "knowmem_forget", "knowmem_retain")),
)

# Name, metric, options; the names of other benchmarks stand for the same attacks.
_Attack = tuple[str, str, Mapping[str, float]]
_MIN_K: _Attack = ("min_k", "min_k_score", {"share": 0.4})
"""Min-40%, the attack of PrivLeak."""
_ATTACKS: tuple[_Attack, ...] = (
    _MIN_K,
    *((f"min_{k}_percent", "min_k_score", {"share": k / 100}) for k in (5, 10, 20, 30, 50, 60)),
    ("loss", "loss_score", {}),
    ("zlib", "zlib_score", {}),
    ("lowercase_ratio", "lowercase_ratio_score", {}),
    ("reference_ratio", "reference_ratio_score", {}),
    ("min_k_plus_plus", "min_k_plus_plus_score", {"share": 0.4}),
    ("gradnorm", "gradnorm_score", {}),
)


def _attack(probe: str, name: str, metric: str, options: Mapping[str, float]) -> Measure:
    return Measure(
        name=name, probe=probe, metric=metric, better="none", unit="score", options=options
    )


def _auc(name: str, samples: Measure, better: Better) -> Aggregate:
    return Aggregate(
        name=name,
        kind="auc",
        samples=samples,
        against="privleak_holdout",
        better=better,
        unit="AUC",
    )


AGGREGATES = (
    Aggregate(
        name="privleak",
        kind="privleak",
        samples=_attack("privleak_forget", *_MIN_K),
        against="privleak_holdout",
        better="closer_to_zero",
        unit="percent",
    ),
    *(
        _auc(f"mia_{attack[0]}", _attack("privleak_forget", *attack), "closer_to_half")
        for attack in _ATTACKS
    ),
    # What is to be kept was seen and stays seen: this tells how far such an attack can be trusted.
    _auc("mia_retain_min_k", _attack("privleak_retain", *_MIN_K), "none"),
)

# Of plain text nothing is left out: it has no end token (M-09).
_OFFICIAL: Mapping[str, Any] = {"stemmer": False, "drop_last": False}
# Prompt and continuation have no space between them there, which distorts values by token.
_NOT_OFFICIAL = frozenset({"exact_memorization", "extraction_strength"})


def _published(corpus: str) -> Preset:
    return Preset(
        name=f"muse_{corpus}_published",
        title=f"muse, PrivLeak against the published AUC of MUSE {corpus.capitalize()}, "
        f"{PUBLISHED_RETAIN_AUC[corpus]}, whatever retain model there is",
        settings={"max_length": TEXT_TOKENS},
        options={**_OFFICIAL, "retain_auc": published_retain_auc(corpus)},
        leaves_out=_NOT_OFFICIAL,
    )


PRESETS = {
    "muse": Preset(
        name="muse",
        title="MUSE: ROUGE without stemmer, all tokens of a text, PrivLeak against a retain model",
        settings={"max_length": TEXT_TOKENS},
        options=_OFFICIAL,
        leaves_out=_NOT_OFFICIAL,
    ),
    "muse_ou": Preset(
        name="muse_ou",
        title="open-unlearning: stemmer, whole continuations, last token of a text left out; its "
        "ROUGE values times 100",
        # The beginning-of-sequence token does not count there.
        settings={"max_length": TEXT_TOKENS + 1},
        options={
            "stemmer": True,
            "epsilon": 1e-10,
            "floor": True,
            "verbmem_form": "open_unlearning",
        },
    ),
    **{preset.name: preset for preset in map(_published, PUBLISHED_RETAIN_AUC)},
}

BENCHMARK = register(
    Benchmark(
        name="muse",
        title="text to forget: verbatim, as knowledge, as a trace of membership, and utility",
        source="MUSE, arXiv:2407.06460; open-unlearning, arXiv:2506.12618",
        version=1,
        probes=PROBES,
        measures=MEASURES,
        aggregates=AGGREGATES,
        presets=PRESETS,
        builder=build_probes,
        options=_OPTIONS,
        reader=partial(load_muse, parts=PARTS),
    )
)
