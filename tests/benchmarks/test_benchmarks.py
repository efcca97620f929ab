"""TOFU and own data: which rows, which numbers, and what is said when one is missing."""

import pytest

from expunge.benchmarks import Aggregate, Benchmark, Evidence, benchmarks, register
from expunge.core.errors import InputError
from expunge.data import load_rows, make_template
from expunge.data.rows import row_set
from expunge.evaluation.runner import run_probes
from expunge.evaluation.tables import ProbeTable
from expunge.metrics import metrics
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

TOFU, CUSTOM = benchmarks.get("tofu"), benchmarks.get("custom")
NINE = {
    f"{probe}/{name}"
    for probe in ("retain", "real_authors", "world_facts")
    for name in ("rouge_l_recall", "probability", "truth_ratio")
}
JUDGED = ("cosine_similarity", "entailment_score")
NEED_JUDGES = {
    *(f"{probe}/{name}" for probe in ("forget", *TOFU.probes[1:4]) for name in JUDGED),
    "forget/perplexity",
    "forget/clean_probability",
    "model_utility_cl",
    "model_utility_retain",
    "forget_efficacy",
}
NEED_HOLDOUT = {
    "privleak",
    *(f"mia_{name}" for name in ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm")),
    "mia_reference",
}
NEED_RETAIN = {
    "forget_quality",
    *(f"{probe}/{name}" for probe in ("forget", "retain") for name in ("loss_gap",)),
    *(f"{probe}/absolute_loss_gap" for probe in ("forget", "retain")),
    *(f"{probe}_loss_gap_{kind}" for probe in ("forget", "retain") for kind in ("median", "max")),
}


def rows_of(probes):
    return {probe.name: probe.rows for probe in probes}


@pytest.mark.parametrize("item", list(benchmarks), ids=lambda item: item.name)
class TestContract:
    def test_measures_name_probes_and_metrics_that_exist(self, item):
        for measure in item.measures:
            assert measure.probe in item.probes
            assert measure.metric in metrics
            known = metrics.get(measure.metric).function.__kwdefaults__ or {}
            assert set(measure.options) <= set(known)

    def test_presets_can_be_used(self, item):
        for name in (None, *item.presets):
            preset = item.preset(name)
            assert preset.title
            assert set(preset.rows) <= set(item.probes)
            item.settings(name, batch_tokens=7)
            assert not item.check_options(preset.options)
            names = {measure.name for measure in item.measures}
            assert preset.leaves_out <= names | {found.name for found in item.aggregates}

    def test_no_tables_give_reasons_and_no_numbers(self, item):
        results = item.score_tables({})
        assert set(results.scores) >= {measure.key for measure in item.measures_of(None)}
        for score in results.scores.values():
            assert score.value is None
            assert score.reason


@pytest.mark.parametrize("split", ["forget01", "forget05", "forget10"])
def test_perturbed_rows_of_a_split_are_found(split):
    """The fields equal those of the published perturbed split, row by row."""
    forget = load_rows(f"tofu:{split}", name="forget")
    found = rows_of(TOFU.build_probes(forget, rows={}))["forget"]
    published = load_rows(f"tofu:{split}_perturbed", name="forget")
    assert [row.fields for row in found] == [row.fields for row in published]
    assert [row.question for row in found] == [row.question for row in forget]


def test_a_slice_and_another_order_are_found_too():
    forget = load_rows("tofu:forget10[25:31]", name="forget")
    turned = row_set(forget.rows[::-1], name="forget", origin="turned")
    found = rows_of(TOFU.build_probes(turned))["forget"]
    published = load_rows("tofu:forget10_perturbed[25:31]", name="forget")
    assert [row.fields for row in found] == [row.fields for row in published][::-1]
    assert [row.index for row in found] == list(range(6))


def test_retain_probe_has_the_retain_rows_with_wrong_answers():
    forget = load_rows("tofu:forget10", name="forget")
    retain = load_rows("tofu:retain90", name="retain")
    found = rows_of(TOFU.build_probes(forget, retain))["retain"]
    assert len(found) == 400
    published = load_rows("tofu:retain_perturbed", name="retain")
    assert [row.fields for row in found] == [row.fields for row in published]
    assert "with wrong answers" in found.origin
    some = rows_of(TOFU.build_probes(forget, retain[380:500]))["retain"]
    assert len(some) == 20


def test_retain_probe_without_a_retain_set_leaves_forget_rows_out():
    """The first author is to be forgotten: 20 of the 400 perturbed retain rows are gone."""
    forget = load_rows("tofu:full[0:20]", name="forget")
    found = rows_of(TOFU.build_probes(forget))
    assert len(found["retain"]) == 380
    assert all(row.fields["perturbed_answer"] for row in found["forget"])
    asked = {(row.question, row.answer) for row in forget}
    assert not asked & {(row.question, row.answer) for row in found["retain"]}


def test_retain_rows_that_have_no_wrong_answers_are_still_measured():
    forget = load_rows("tofu:forget01", name="forget")
    retain = load_rows("tofu:full[1000:1010]", name="retain")
    found = rows_of(TOFU.build_probes(forget, retain))["retain"]
    assert len(found) == 10


def test_general_knowledge_probes_are_complete():
    found = rows_of(TOFU.build_probes(load_rows("tofu:forget01", name="forget")))
    assert (len(found["real_authors"]), len(found["world_facts"])) == (100, 117)
    for name in ("real_authors", "world_facts"):
        assert all(len(row.fields["perturbed_answer"]) == 3 for row in found[name])


def test_presets_limit_rows_and_lengths():
    forget = load_rows("tofu:forget10", name="forget")
    classic = rows_of(TOFU.build_probes(forget, preset="tofu_classic"))
    assert {name: len(rows) for name, rows in classic.items()} == {
        "forget": 300,
        "retain": 300,
        "real_authors": 100,
        "world_facts": 117,
    }
    assert TOFU.settings("tofu_classic").max_total_tokens == 200
    assert TOFU.settings("tofu_classic").max_length == 200
    ou = rows_of(TOFU.build_probes(forget, preset="tofu_ou"))
    assert len(ou["forget"]) == 400
    assert TOFU.settings("tofu_ou").max_new_tokens == 200
    assert TOFU.settings("tofu_ou").max_total_tokens is None
    assert TOFU.preset("tofu_ou").options["epsilon"] == 1e-10


def test_row_limits_go_before_the_presets():
    forget = load_rows("tofu:forget10", name="forget")
    limits = {"forget": None, "retain": 40}
    found = rows_of(TOFU.build_probes(forget, preset="tofu_classic", rows=limits))
    assert (len(found["forget"]), len(found["retain"])) == (400, 40)
    assert found["retain"].origin.endswith("[0:40]")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": {"retian": 4}}, "no probe 'retian'. Did you mean retain"),
        ({"rows": {"retain": 0}}, "leaves nothing to measure"),
        ({"preset": "tofu_clasic"}, "no preset 'tofu_clasic'. Did you mean tofu_classic"),
    ],
)
def test_wrong_names_are_explained(options, message):
    with pytest.raises(InputError, match=message):
        TOFU.build_probes(load_rows("tofu:forget01", name="forget"), **options)


def test_own_rows_keep_what_they_have():
    forget = load_rows(toy_facts(4, perturbed=True), name="forget")
    (probe,) = CUSTOM.build_probes(forget)
    assert probe.name == "forget"
    assert probe.rows.fingerprint == forget.fingerprint
    text = load_rows([{"text": "once upon a time"}], name="forget")
    assert not CUSTOM.build_probes(text)[0].generate
    both = CUSTOM.build_probes(forget, forget, rows={"world_facts": 5, "forget": 3})
    assert {probe.name: len(probe.rows) for probe in both} == {
        "forget": 3,
        "retain": 4,
        "world_facts": 5,
    }


@pytest.fixture(scope="module")
def evaluate():
    """Runs probes on a tiny model of a seed."""
    tokenizer = tiny_tokenizer("smollm2", texts=["Who wrote the play 'Romeo and Juliet'?"])
    template = make_template(tokenizer, "auto")

    def run(benchmark, probes, seed=0):
        model = tiny_model(tokenizer, seed=seed)
        return run_probes(model, tokenizer, template, probes, benchmark.settings(max_new_tokens=4))

    return run


@pytest.fixture(scope="module")
def tofu_probes():
    forget = load_rows("tofu:forget01", name="forget")
    return TOFU.build_probes(forget, rows=dict.fromkeys(TOFU.probes, 3))


def test_tofu_end_to_end(evaluate, tofu_probes):
    tables = evaluate(TOFU, tofu_probes)
    retain = evaluate(TOFU, tofu_probes, seed=1)
    results = TOFU.score_tables(
        Evidence(tables=tables, retains=[retain]), role="unlearned", model="a model"
    )
    assert set(results.scores) >= NINE | {"model_utility", "forget_quality"}
    absent = {key for key, score in results.scores.items() if score.value is None}
    assert absent == NEED_JUDGES | NEED_HOLDOUT
    assert results.scores["forget_quality"].value == results.forget_quality.p_value
    assert results.forget_quality.n == results.forget_quality.m == 3
    assert results.settings["rows"] == dict.fromkeys(TOFU.probes[:4], 3)
    assert results.settings["preset"] == "tofu"
    assert results.settings["max_new_tokens"] == 4
    assert results.model_fingerprint
    assert {"torch", "scipy", "rouge-score"} <= set(results.versions)
    better = {key: score.better for key, score in results.scores.items()}
    assert better["forget/rouge_l_recall"] == better["forget/probability"] == "lower"
    assert better["forget/truth_ratio"] == better["model_utility"] == "higher"


def test_a_model_against_itself(evaluate, tofu_probes):
    tables = evaluate(TOFU, tofu_probes)
    test = TOFU.score_tables(Evidence(tables=tables, retains=[tables])).forget_quality
    assert (test.p_value, test.statistic) == (1.0, 0.0)


def test_without_a_retain_model_only_forget_quality_is_absent(evaluate, tofu_probes):
    results = TOFU.score_tables(evaluate(TOFU, tofu_probes))
    absent = {key for key, score in results.scores.items() if score.value is None}
    assert absent == NEED_JUDGES | NEED_HOLDOUT | NEED_RETAIN
    assert "no retain model" in results.scores["forget_quality"].reason
    assert "no retain model" in results.forget_quality.reason


def test_scores_do_not_need_the_order_or_the_origin_of_rows(evaluate, tofu_probes):
    tables = evaluate(TOFU, tofu_probes)
    turned = {
        name: ProbeTable(
            probe=name, columns={key: column[::-1] for key, column in table.columns.items()}
        )
        for name, table in tables.items()
    }
    plain, other = TOFU.score_tables(tables), TOFU.score_tables(turned)
    for key, score in plain.scores.items():
        if score.value is not None:
            assert other.scores[key].value == pytest.approx(score.value)
            assert other.scores[key].n == score.n


def test_own_rows_without_wrong_answers(evaluate):
    """What can be measured is; truth ratio and what depends on it say why not."""
    facts = toy_facts(6)
    forget, retain = load_rows(facts[:3], name="forget"), load_rows(facts[3:], name="retain")
    tables = evaluate(CUSTOM, CUSTOM.build_probes(forget, retain))
    scores = CUSTOM.score_tables(Evidence(tables=tables, retains=[tables])).scores
    measured = {key for key, score in scores.items() if score.value is not None}
    assert measured == {
        *NEED_RETAIN - {"forget_quality"},
        "forget/token_entropy",
        "forget/repetition",
        "retain/token_entropy",
        "forget/rouge_l_recall",
        "forget/probability",
        "forget/exact_memorization",
        "forget/extraction_strength",
        "forget/generated_tokens",
        "retain/rouge_l_recall",
        "retain/probability",
    }
    assert "no wrong answers" in scores["forget/truth_ratio"].reason
    assert "no wrong answers" in scores["forget_quality"].reason
    assert "the real_authors probe was not run" in scores["model_utility"].reason


def test_own_rows_with_everything(evaluate):
    facts = toy_facts(6, perturbed=True)
    forget, retain = load_rows(facts[:3], name="forget"), load_rows(facts[3:], name="retain")
    probes = CUSTOM.build_probes(forget, retain, rows={"real_authors": 2, "world_facts": 2})
    tables = evaluate(CUSTOM, probes)
    scores = CUSTOM.score_tables(Evidence(tables=tables, retains=[tables])).scores
    absent = {key for key, score in scores.items() if score.value is None}
    assert absent == NEED_JUDGES | NEED_HOLDOUT


def test_presets_move_the_numbers_they_should(evaluate, tofu_probes):
    """The epsilon of open-unlearning is seen in the ratio and nowhere in the plain probability."""
    tables = evaluate(TOFU, tofu_probes)
    plain, ou = TOFU.score_tables(tables), TOFU.score_tables(tables, preset="tofu_ou")
    assert ou.settings["metric_options"]["epsilon"] == 1e-10
    ratio, probability = "forget/truth_ratio", "forget/probability"
    assert ou.scores[ratio].value != plain.scores[ratio].value
    assert ou.scores[ratio].value == pytest.approx(plain.scores[ratio].value, rel=1e-5)
    assert ou.scores[probability].value == plain.scores[probability].value


def test_a_declaration_must_fit_together():
    broken = Aggregate(
        name="sum", kind="harmonic_mean", over=("forget/luck",), better="higher", unit=""
    )
    fields = {**vars(CUSTOM), "name": "broken"}
    with pytest.raises(ValueError, match="lacks"):
        register(Benchmark(**fields | {"aggregates": (broken,)}))
    with pytest.raises(ValueError, match="two measures"):
        register(Benchmark(**fields | {"measures": (*CUSTOM.measures, CUSTOM.measures[0])}))
    assert "broken" not in benchmarks
