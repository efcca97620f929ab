"""Reading and writing the papers' notation."""

import pytest

from expunge.core.errors import InputError
from expunge.core.notation import read_notation
from expunge.methods import describe, parse


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("npo + gd", "NPO+GD"),
        ("grad_ascent", "GA"),
        ("NPO(beta=0.5)+GD(weight=2)", "NPO(beta=0.5)+GD(weight=2.0)"),
        ("EGUP( NPO+GD , k = 1 )", "EGUP(NPO+GD, k=1.0)"),
        ("UIPE(EGU(GA), alpha=-0.5)", "UIPE(EGU(GA), alpha=-0.5)"),
        ("UIPE(NPO)", "UIPE(NPO)"),
        ("EGUP_w/o(NPO)", "PROXY(NPO)"),
        ("GA+KL(positions=all)", "GA+KL(positions=all)"),
        ("EAGLE-PC(GA)", "EGUP(GA)"),
        ("DPO(scale=1)", "DPO(scale=1)"),
        ("DPO(scale=2/beta)", "DPO(scale=2/beta)"),
        ("PDU+GD(limit=0.3, dual_step=5)", "PDU+GD(limit=0.3, dual_step=5.0)"),
        ("LLMU(num_mismatch=5, average=rows)+KL", "LLMU(average=rows, num_mismatch=5)+KL"),
    ],
)
def test_canonical_form(text, canonical):
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 0, "empty"),
        ("NPO+GX", 4, "unknown retain term GX"),
        ("NOP+GD", 0, "Did you mean NPO"),
        ("NPO+GD+KL", 6, "one forget loss and at most one retain"),
        ("NPO(beta=0)", 4, "above 0"),
        ("NPO(betta=1)", 4, "Did you mean beta"),
        ("NPO(beta=one)", 4, "'one' is not allowed; beta must be a number above 0"),
        ("NPO(beta=nan)", 4, "not allowed"),
        ("NPO(beta)", 0, "does not wrap"),
        ("EGU", 0, "wraps a method"),
        ("EGU(NPO", 7, "closing bracket"),
        ("NPO)", 3, "expected the end"),
        ("UIPE(NPO, alpha=x)", 10, "must be a number"),
        ("EGU(NPO, scope=all)", 9, "one of step, micro_batch, dataset"),
        ("EGU(NPO, k=1, k=2)", 14, "given twice"),
        ("EGU(NPO, weight_grad=true)", 0, "scope=micro_batch"),
        ("EGUP(IDK, penalty_nll=objective)", 0, "forget answers"),
        ("EGUP(NPO-WMDP, penalty_nll=objective)", 0, "one value for a whole step"),
        ("DPO(scale=2)", 4, "one of 2/beta, 1"),
        ("PDU+GD", 4, "needs the level of the retain term"),
        ("GA+GD(dual_step=2)", 3, "without limit"),
        ("GA(average=broadcast)", 0, "open-unlearning divides in RMU"),
        ("EGU(CONFIDENCE(GA), level=token)", 0, "already weighs tokens"),
        ("CONFIDENCE(SATURATION(GA))", 0, "each weighs tokens"),
        ("RMU(layer=3)+ACT", 0, "must name the same layer"),
        ("EGU(NPO)+GD", 8, "inside its brackets"),
        ("NPO(positions=all)", 4, "no option positions"),
    ],
)
def test_errors_point_at_the_character(text, column, message):
    with pytest.raises(InputError) as caught:
        parse(text)
    text_of_error = str(caught.value)
    assert message in text_of_error or message in text_of_error.replace("\n", " ")
    if text:
        assert text_of_error.splitlines()[-1] == "  " + " " * column + "^", text_of_error


def test_mappings_override_the_text():
    method = parse("EGUP(NPO(beta=0.1)+GD)", forget={"beta": 0.2}, wrapper={"mu": 0.005})
    assert method.forget_term.options["beta"] == 0.2
    assert method.proxy.mu == 0.005
    assert method.entanglement.lambda_c == 0.005  # tied to mu


def test_a_mapping_for_a_part_that_is_not_there():
    for part in ("retain", "wrapper", "post"):
        with pytest.raises(InputError, match=part):
            parse("NPO", **{part: {"weight": 1}})


def test_published_weight_of_me_with_gd():
    assert parse("ME+GD").forget_term.weight == 0.1
    assert parse("ME").forget_term.weight == 1.0
    assert str(parse("ME(weight=0.5)+GD")) == "ME(weight=0.5)+GD"


def test_what_a_method_needs():
    assert parse("NPO+GD").needs_reference == "log-probabilities"
    assert parse("GA+KL").needs_reference == "distributions"
    assert parse("GA+GD").needs_reference == ""
    assert not parse("NPO").needs_retain
    assert parse("EGU(NPO)").needs_retain
    assert parse("IDK+AP").streams == ("alternate", "retain", "retain_alternate")


def test_description_is_plain_data():
    import json

    text = json.dumps(describe(parse("UIPE(EGUP(NPO+GD), alpha=0.2)")))
    assert "arXiv:2404.05868" in text
    assert "arXiv:2508.20443" in text
    assert "arXiv:2503.04693" in text


def test_nested_sums_keep_positions():
    node = read_notation("EGUP(NPO+GD, k=1)")
    assert (node.inner.at, node.inner.plus.at, node.option_at["k"]) == (5, 9, 13)
