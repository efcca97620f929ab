"""MUSE as a benchmark: which texts a model gets, and that the published numbers come out."""

import numpy as np
import pytest

from expunge.benchmarks import Evidence, benchmarks
from expunge.benchmarks.muse import (
    CUT_AT,
    build_probes,
    first_below,
    published_retain_auc,
)
from expunge.core.errors import InputError
from expunge.data import make_template
from expunge.data.muse import load_muse
from expunge.evaluation.runner import run_probes
from expunge.evaluation.tables import ProbeTable
from expunge.metrics import metrics
from expunge.metrics.privacy import attack_auc
from expunge.testing.muse import tiny_muse
from expunge.testing.tiny import tiny_model, tiny_tokenizer

MUSE = benchmarks.get("muse")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_muse(tmp_path_factory.mktemp("muse"), rows=3, folds=0)


def probes_of(folder, rows=None, **options):
    found = build_probes(None, None, rows=rows or {}, options={"folder": folder, **options})
    return {probe.name: probe for probe in found}


# Probes.


def test_all_probes_are_built(folder):
    probes = probes_of(folder)
    assert tuple(probes) == MUSE.probes
    assert {len(probe.rows) for probe in probes.values()} == {3}
    assert {name for name, probe in probes.items() if probe.generate} == {
        "verbmem",
        "knowmem_forget",
        "knowmem_retain",
    }
    assert not any(probe.variants for probe in probes.values())


def test_knowledge_is_asked_after_all_examples_of_its_side(folder):
    corpus = load_muse(folder)
    for side in ("forget", "retain"):
        probe = probes_of(folder)[f"knowmem_{side}"]
        row, other = probe.rows[1], corpus.need(f"knowmem/{side}_qa")[1]
        first, second = corpus.need(f"knowmem/{side}_qa_icl")
        assert row.question == (
            f"Question: {first.question}\nAnswer: {first.answer}\n\n"
            f"Question: {second.question}\nAnswer: {second.answer}\n\n"
            f"Question: {other.question}\nAnswer: "
        )
        assert row.answer == other.answer
        assert row.fields["asked"] == other.question
        assert (probe.continuation, probe.max_new_tokens) == (True, 32)
        assert probe.cut_at == ("\n\n", "\nQuestion", "Question:")


def test_verbatim_memorisation_continues_the_prompt_as_it_stands(folder):
    row = load_muse(folder).need("verbmem/forget")[0]
    official = probes_of(folder)["verbmem"]
    assert (official.rows[0].question, official.rows[0].answer) == (row.question, row.answer)
    assert (official.continuation, official.max_new_tokens) == (True, 128)
    # 128 ids with the beginning-of-sequence token.
    assert official.reference_tokens == 128
    other = probes_of(folder, verbmem_form="open_unlearning")["verbmem"]
    assert other.rows[0].question == row.question
    assert other.rows[0].answer == f" {row.answer}"
    assert other.reference_tokens is None
    assert other.max_new_tokens == 128


def test_rows_are_limited_and_examples_are_not(folder):
    probes = probes_of(folder, rows={"knowmem_forget": 1, "privleak_holdout": 2, "verbmem": None})
    assert len(probes["knowmem_forget"].rows) == 1
    assert probes["knowmem_forget"].rows[0].question.count("Question: ") == 3
    assert len(probes["privleak_holdout"].rows) == 2
    assert len(probes["verbmem"].rows) == 3


def test_what_the_folder_lacks_is_not_asked(tmp_path):
    folder = tiny_muse(tmp_path / "muse", folds=0)
    for path in [*(folder / "knowmem").glob("retain*"), *(folder / "verbmem").iterdir()]:
        path.unlink()
    (folder / "verbmem").rmdir()
    (folder / "privleak" / "retain.jsonl").unlink()
    assert set(probes_of(folder)) == {"knowmem_forget", "privleak_forget", "privleak_holdout"}
    tables = {"privleak_forget": scored([[-1.0], [-2.0]])}
    scores = MUSE.score_tables(tables).scores
    assert "verbmem probe was not run" in scores["verbmem/rouge_l_f1"].reason
    assert scores["privleak"].value is None
    assert "holdout" in scores["privleak"].reason


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, r"needs evaluation\.options\.folder.*make_muse_standin"),
        ({"folder": "x", "foldr": 1}, "no option 'foldr'. Did you mean folder"),
        ({"folder": "x", "verbmem_form": "tofu"}, "verbmem_form is 'tofu'. Possible: muse"),
        ({"folder": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_options_are_explained(options, text):
    with pytest.raises(InputError, match=text):
        build_probes(None, None, rows={}, options=options)


# Numbers.


def scored(logps, **columns):
    """A table with token log-probabilities."""
    made = {"question": [""] * len(logps), "answer": ["x"] * len(logps), "answer_logps": logps}
    return ProbeTable(probe="", columns={**made, **columns})


def privleak_tables(forget, holdout):
    """One token for each text, so that its loss is every Min-K score."""
    return {
        "privleak_forget": scored([[-value] for value in forget]),
        "privleak_holdout": scored([[-value] for value in holdout]),
    }


# Golden vectors `muse_privleak`: metrics/privleak.py:sweep, eval.py and AUC_RETRAIN of MUSE.
NEWS_FORGET = [2.611959702892663, 2.742235401308651, 4.504948415737656, 5.917089479210004,
               5.842637538866699, 2.3903626573103165, 2.5319582148505915, 4.514062648911279,
               4.9913326934373625, 5.989375322317908, 2.3089452415543192,
               4.418963982030068]  # fmt: skip
NEWS_HOLDOUT = [3.031295270849548, 6.2830170057765, 2.5890284801926473, 3.5668064447321437,
                3.5708170217210506, 5.9803832153966905, 6.263513350995434, 3.577363954879946,
                5.329684990856087, 6.1288728151423175, 4.0078474604151815,
                2.4288459898907875]  # fmt: skip
BOOKS_FORGET = [4.587295879962431, 4.066513707865438, 2.7257459653541436, 5.508283181635326,
                5.702614903963271, 5.570139068556433, 3.641552941314466, 2.8246213671265865,
                3.156476786334859, 5.982483652815633, 5.8352296057119935,
                3.551045919455562]  # fmt: skip
BOOKS_HOLDOUT = [5.214591224297211, 3.558497425063104, 3.092697507848262, 3.95821919304452,
                 4.027551602612393, 2.7948617317080853, 4.493517919657442, 5.933938948804052,
                 3.3582326698677205, 4.114365058600433, 4.0406824964617645,
                 5.254914903535194]  # fmt: skip
GOLDEN = {
    "news": (NEWS_FORGET, NEWS_HOLDOUT, 0.4027777777777778, -15.595603986215878),
    "books": (BOOKS_FORGET, BOOKS_HOLDOUT, 0.5694444444444444, 5.589550240023092),
}


@pytest.mark.parametrize("corpus", GOLDEN)
def test_privacy_leakage_of_the_released_code(corpus):
    forget, holdout, auc, privleak = GOLDEN[corpus]
    scores = MUSE.score_tables(
        privleak_tables(forget, holdout), preset=f"muse_{corpus}_published"
    ).scores
    assert scores["mia_min_k"].value == pytest.approx(1 - auc, abs=1e-12)
    assert scores["privleak"].value == pytest.approx(privleak, abs=1e-9)


def test_privacy_leakage_is_never_against_a_number_nobody_asked_for():
    forget, holdout, _, _ = GOLDEN["news"]
    tables = privleak_tables(forget, holdout)
    for preset in (None, "muse", "muse_ou"):
        score = MUSE.score_tables(tables, preset=preset).scores["privleak"]
        assert score.value is None
        assert "no retain model" in score.reason
    other = privleak_tables(*GOLDEN["books"][:2])
    score = MUSE.score_tables(Evidence(tables=tables, retains=[other])).scores["privleak"]
    expected = 100 * (GOLDEN["news"][2] - GOLDEN["books"][2]) / GOLDEN["books"][2]
    assert score.value == pytest.approx(expected)
    itself = MUSE.score_tables(Evidence(tables=tables, retains=[tables])).scores["privleak"]
    assert itself.value == pytest.approx(0.0)


def test_the_published_constants_are_asked_for_by_name():
    assert published_retain_auc("news") == pytest.approx(1 - 0.4772)
    assert published_retain_auc("books") == pytest.approx(1 - 0.5393)
    with pytest.raises(InputError, match=r"no published retain AUC for 'new'\. Did you mean news"):
        published_retain_auc("new")
    named = {name for name, item in MUSE.presets.items() if "retain_auc" in item.options}
    assert named == {"muse_news_published", "muse_books_published"}


def test_the_last_token_of_a_text_counts_and_does_not_in_open_unlearning():
    """Forget and holdout differ in the last token alone."""
    forget, holdout = [[-1.0, -2.0, -0.1]] * 4, [[-1.0, -2.0, -9.0]] * 4
    tables = {"privleak_forget": scored(forget), "privleak_holdout": scored(holdout)}
    assert MUSE.score_tables(tables).scores["mia_min_k"].value == 1.0
    assert MUSE.score_tables(tables, preset="muse_ou").scores["mia_min_k"].value == 0.5


def test_overlap_is_printed_times_100_and_stems_in_open_unlearning_only():
    """Words, then stems: "ships sailing" shares no word with "ship sailed", and both stems."""
    table = ProbeTable(
        probe="knowmem_forget",
        columns={
            "question": ["", ""],
            "answer": ["ship sailed", "Port Keel"],
            "generation": ["ships sailing", " Port Keel "],
            "generation_tokens": [2, 3],
        },
    )
    key = "knowmem_forget/rouge_l_f1"
    official = MUSE.score_tables({"knowmem_forget": table}).scores[key]
    assert (official.value, official.better) == (50.0, "lower")
    assert "x 100" in official.unit
    other = MUSE.score_tables({"knowmem_forget": table}, preset="muse_ou").scores[key]
    assert other.value == 100.0


def test_the_golden_answer_has_its_score():
    """Golden vector `knowmem_prompt`: 0.8 for the output cut at the next question."""
    table = ProbeTable(
        probe="knowmem_retain",
        columns={
            "question": [""],
            "answer": ["Mira Solheim wrote it."],
            "generation": [" Mira Solheim wrote it in 1990."],
            "generation_tokens": [9],
        },
    )
    score = MUSE.score_tables({"knowmem_retain": table}).scores["knowmem_retain/rouge_l_f1"]
    assert score.value == pytest.approx(80.0)
    assert score.better == "higher"


def test_texts_are_cut_where_muse_cuts_them():
    assert MUSE.settings().max_length == 2048
    # There the beginning-of-sequence token does not count.
    assert MUSE.settings("muse_ou").max_length == 2049
    assert MUSE.settings("muse_news_published").max_length == 2048


def test_the_preset_decides_the_form_of_the_continuation(folder):
    options = {"folder": str(folder)}
    (plain, *_) = MUSE.build_probes(None, None, options=options)
    (other, *_) = MUSE.build_probes(None, None, options=options, preset="muse_ou")
    assert (plain.reference_tokens, other.reference_tokens) == (128, None)
    both = {**options, "verbmem_form": "muse"}
    (again, *_) = MUSE.build_probes(None, None, options=both, preset="muse_ou")
    assert again.reference_tokens == 128


def test_every_attack_names_a_metric_and_a_holdout_set():
    for aggregate in MUSE.aggregates:
        item = metrics.get(aggregate.samples.metric)
        assert set(aggregate.samples.options) <= set(item.function.__kwdefaults__ or {})
        assert aggregate.against == "privleak_holdout"
        assert aggregate.samples.probe in MUSE.probes


# The rule that selects a checkpoint.


@pytest.mark.parametrize(
    ("knowmem", "retain", "position"),
    [
        ([60.0, 40.0, 33.1, 20.0], 33.1, 2),
        ([30.0, 60.0], 33.1, 0),
        ([60.0, 50.0], 33.1, None),
        ([float("nan"), None, 10.0], 33.1, 2),
        ([], 33.1, None),
    ],
)
def test_the_first_checkpoint_that_knows_no_more_than_it_should(knowmem, retain, position):
    assert first_below(knowmem, retain) == position


# With a model.


@pytest.mark.parametrize("family", ["llama3", "smollm2"])
def test_end_to_end(folder, family):
    tokenizer = tiny_tokenizer(family)
    template = make_template(tokenizer, "auto")
    probes = MUSE.build_probes(None, None, options={"folder": folder})
    found = [
        run_probes(tiny_model(tokenizer, seed=seed), tokenizer, template, probes, MUSE.settings())
        for seed in (0, 1)
    ]
    tables = found[0]
    texts = tables["privleak_forget"]
    whole = [len(tokenizer(text)["input_ids"]) for text in texts["answer"]]
    # All tokens but the very first: the beginning token, or the first where there is none.
    assert [len(logps) for logps in texts["answer_logps"]] == [n - 1 for n in whole]
    assert "generation" not in texts
    for name, most in (("verbmem", 128), ("knowmem_forget", 32)):
        assert max(tables[name]["generation_tokens"]) <= most
    assert not any(
        mark in said for said in tables["knowmem_forget"]["generation"] for mark in CUT_AT
    )
    scores = MUSE.score_tables(Evidence(tables=tables, retains=[found[1]])).scores
    for key in (
        "verbmem/rouge_l_f1",
        "knowmem_forget/rouge_l_f1",
        "knowmem_retain/rouge_l_f1",
        "privleak",
        "mia_min_k",
        "mia_zlib",
        "mia_min_k_plus_plus",
        "mia_retain_min_k",
    ):
        assert scores[key].value is not None, (key, scores[key].reason)
    holdout = tables["privleak_holdout"]
    score = metrics.get("min_k_score").function
    aucs = attack_auc(
        score(texts["answer_logps"], share=0.4, drop_last=False),
        score(holdout["answer_logps"], share=0.4, drop_last=False),
    )
    assert scores["mia_min_k"].value == pytest.approx(aucs)
    assert np.isfinite(scores["privleak"].value)
    assert "base" in scores["mia_reference_ratio"].reason
