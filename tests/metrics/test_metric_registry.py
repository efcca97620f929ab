"""Contracts that every registered metric keeps, also those that are added later."""

import math

import numpy as np
import pytest

from expunge.core.errors import InputError
from expunge.evaluation.tables import ANNOTATIONS, COLUMNS
from expunge.metrics import metrics
from expunge.metrics.registry import metric

ROLES = ("retain", "initial", "base")
# The first sample can be scored by every metric, the last one by none.
ROWS = {
    "answer": ["one two", "three", "", "four five"],
    "answer_logps": [[-0.5, -1.0], [-2.0], [], None],
    "answer_logp_mean": [[-1.5, -1.0], [-2.0], [], None],
    "answer_logp_var": [[0.5, 0.0], [1.0], [], None],
    "answer_greedy": [[True, False], [True], [], None],
    "paraphrase_logps": [[-1.0], None, [], None],
    "perturbed_logps": [[[-2.0], [-3.0]], [[-1.0]], [], None],
    "generation": ["one two", "", "x", None],
    "generation_ids": [[1, 2, 1, 2, 1, 2], [], [3], None],
    "generation_tokens": [2, 0, 1, None],
    "generation_similarity": [-0.5, 1.0 + 1e-7, math.nan, None],
    "nli_generation_first": ["entailment", "neutral", "not_entailment", None],
    "nli_reference_first": ["contradiction", "entailment", "neutral", None],
    "clean_probability": [0.5, 1.0, 0.0, None],
    "generation_base_nll": [2.0, 0.0, math.inf, None],
    "answer_gradnorm": [0.25, 0.0, math.nan, None],
    "answer_lower_nll": [2.0, 0.0, math.nan, None],
    "retain:answer_logps": [[-2.0, -1.0], [-2.0], [], None],
    "base:answer_logps": [[-0.25, -1.0], [0.0], [], None],
}
NAMES = metrics.names()


def test_all_are_found():
    assert {"probability", "truth_ratio", "rouge_l_recall", "extraction_strength"} <= set(NAMES)
    assert {"cosine_similarity", "entailment_score", "min_k_plus_plus_score"} <= set(NAMES)


def test_every_column_of_another_pass_has_a_metric():
    read = {column for item in metrics for column in item.reads}
    assert set(ANNOTATIONS) <= read


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_reads_columns_that_tables_have(self, name):
        item = metrics.get(name)
        for column in item.reads:
            role, colon, name = column.rpartition(":")
            assert name in COLUMNS | ANNOTATIONS
            assert not colon or role in ROLES
        assert set(item.optional) <= set(item.reads)

    def test_declared_reads_suffice_and_order_changes_nothing(self, name):
        item = metrics.get(name)
        own = {column: ROWS[column] for column in item.reads}
        values = item(own)
        assert values.shape == (4,)
        turned = item({column: rows[::-1] for column, rows in own.items()})
        np.testing.assert_array_equal(turned, values[::-1])

    def test_each_sample_stands_alone(self, name):
        item = metrics.get(name)
        own = {column: ROWS[column] for column in item.reads}
        single = [item({column: rows[i : i + 1] for column, rows in own.items()}) for i in range(4)]
        np.testing.assert_array_equal(np.concatenate(single), item(own))

    def test_what_cannot_be_scored_is_nan_and_the_rest_in_range(self, name):
        item = metrics.get(name)
        values = item({column: ROWS[column] for column in item.reads})
        assert not math.isnan(values[0])
        assert math.isnan(values[3])
        low, high = item.range
        scored = values[~np.isnan(values)]
        assert (scored >= low).all()
        assert (scored <= high).all()

    def test_says_what_it_is(self, name):
        item = metrics.get(name)
        assert item.title
        assert item.source
        assert item.direction
        assert item.version >= 1
        assert item.summary.endswith((".", "`"))
        low, high = item.range
        assert low < high

    def test_options_have_defaults_that_change_nothing(self, name):
        """A benchmark that names no option gets what the signature says."""
        item = metrics.get(name)
        own = {column: ROWS[column] for column in item.reads}
        defaults = item.function.__kwdefaults__ or {}
        np.testing.assert_array_equal(item(own, **defaults), item(own))


def test_missing_columns_are_named():
    item = metrics.get("truth_ratio")
    assert item.missing({"answer_logps": []}) == ["perturbed_logps"]


def test_unknown_metric_is_explained():
    with pytest.raises(InputError, match="Did you mean probability"):
        metrics.get("probabilty")


def test_a_name_is_taken_once():
    def probability(answer_logps):
        """Something else."""

    declare = metric(
        title="x", reads=(), version=1, range=(0.0, 1.0), direction="none", source="none"
    )
    with pytest.raises(ValueError, match="registered twice"):
        declare(probability)
