"""The register of differences: every form can be had, is documented, and measures what it says."""

import json
import lzma
import math
import re
from pathlib import Path

import pytest
import torch

from expunge.core.notation import read_notation
from expunge.methods import parse
from expunge.run.config import keys
from expunge.run.differences import DIFFERENCES, SOURCES
from expunge.run.differences.gradients import agreement, norm
from expunge.run.differences.inputs import KNOWN, SHORT, START, fixture, padded
from expunge.run.differences.logits import can_run, fixture_rows, method_of, padded_rows, run
from expunge.run.differences.numbers import cosine, cosines, difference, number, ratio, span
from expunge.run.differences.page import differences_text
from expunge.run.differences.worked import BASES, run_worked, worked_rows
from expunge.run.golden_losses import golden_method
from expunge.run.pages import page
from expunge.run.resolve import resolve

GOLDEN = Path(__file__).parents[1] / "golden"
FORMS = [(entry, form) for entry in DIFFERENCES for form in entry.forms]
IDS = [f"{entry.mark} {form.here or form.does}" for entry, form in FORMS]
# Questions that no option can answer, with the reason in the entry.
WITHOUT_OPTION = {"E-14", "E-16"}


def shown(name):
    """The page of `expunge show` as one line."""
    return " ".join(page(name).split())


def test_the_register_is_complete():
    marks = {entry.mark for entry in DIFFERENCES}
    assert marks == {f"C-{n:02}" for n in range(1, 19)} | {f"E-{n:02}" for n in range(1, 19)}


def test_every_entry_is_an_option():
    missing = {e.mark for e in DIFFERENCES if not any(form.here for form in e.others)}
    missing -= {e.mark for e in DIFFERENCES if e.plain.settings}
    assert missing == WITHOUT_OPTION


@pytest.mark.parametrize(("entry", "form"), FORMS, ids=IDS)
def test_every_form_can_be_had(entry, form, tmp_path):
    for notation in {form.notation, form.runs} - {""}:
        assert str(method_of(notation))
    for setting in form.settings:
        key, _, value = setting.partition("=")
        if key == "drop_last":
            continue  # an argument of metrics, see below
        assert key in {known.path for known in keys()}
        assert resolve_with(tmp_path, key, value)


def resolve_with(folder, key, value):
    (folder / "run.yaml").write_text(
        "data: {forget: tofu:forget01, retain: tofu:retain99}\nmethod: GA+GD\n"
    )
    return resolve(folder / "run.yaml", overrides=[f"{key}={value}"])


def test_tokens_of_the_end_can_be_counted():
    from expunge.metrics.memorization import exact_memorization

    matches = [torch.tensor([True, False]).numpy()]
    assert exact_memorization(matches, drop_last=True) == [1.0]
    assert exact_memorization(matches, drop_last=False) == [0.5]


@pytest.mark.parametrize("entry", DIFFERENCES, ids=lambda entry: f"{entry.mark} {entry.topic}")
def test_show_names_the_mark_and_every_form(entry):
    pages = {name: shown(name) for name in entry.shows}
    assert pages, "no page documents it"
    assert [name for name, text in pages.items() if entry.mark not in text] == []
    everything = " ".join(pages.values())
    for form in entry.forms:
        for word in words(form):
            assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", everything), f"{word} is not told"


def words(form):
    """Names of parts, option names and named values that stand for a form."""
    for setting in form.settings:
        key, _, value = setting.partition("=")
        yield from (key.rpartition(".")[2], value.lower())
    if form.notation:
        yield from words_of(read_notation(form.notation))


def words_of(node):
    example = {"GA"}  # stands inside wrappers only as an example
    yield from () if node.name in example else (node.name,)
    for key, value in node.options.items():
        yield key
        if isinstance(value, str):
            yield value
    for inner in (node.inner, node.plus):
        if inner is not None and inner.name not in {"GD", *example}:
            yield from words_of(inner)


@pytest.mark.parametrize(
    ("entry", "form"), [(e, f) for e, f in FORMS if f.golden], ids=lambda x: getattr(x, "here", "")
)
def test_a_checked_form_has_cases_behind_it(entry, form):
    """Some case of each file named stands for the parts and the named options of the form."""
    wanted = signature(form.notation)
    for name in form.golden:
        cases = json.loads(lzma.decompress((GOLDEN / f"{name}.json.xz").read_bytes()))["cases"]
        methods = filter(None, map(golden_method, cases))
        assert any(wanted <= signature(str(method)) for method in methods), name


def signature(notation):
    node = read_notation(notation)
    found = set()
    while node is not None:
        found |= {node.name} | {(node.name, k) for k in node.options if k != "weight"}
        found |= {(node.name, k, v) for k, v in node.options.items() if isinstance(v, str)}
        node = node.plus
    return found


def test_sources_are_named_in_the_register():
    text = " ".join(form.who for _, form in FORMS)
    assert [s.name for s in SOURCES if s.name not in text] == ["empirical weights"]


# --- inputs ---


def test_padding_is_unlabelled_and_repeats_the_row():
    plain, wide = fixture("A_qa"), padded("A_qa", 10)
    for name in ("forget", "retain"):
        for row, longer in zip(plain[name]["logits"], wide[name]["logits"], strict=True):
            assert longer == row + row + row[:2]
        assert all(row[8:] == [-100] * 10 for row in wide[name]["labels"])
        assert all(row[8:] == [0] * 10 for row in wide[name]["attention_mask"])


def test_variations_of_the_fixture():
    start, known, short = fixture(START), fixture(KNOWN), fixture(SHORT)
    assert start["forget"]["ref_logits"] == fixture("A_qa")["forget"]["logits"]
    assert run("GD", KNOWN).value < run("GD", "A_qa").value / 4
    assert known["retain"]["ref_logits"] == fixture("A_qa")["retain"]["ref_logits"]
    assert all(sum(label != -100 for label in row) == 1 for row in short["idk"]["labels"])


def test_inputs_without_the_streams_are_left_out():
    assert not can_run("IDK+GD", "U_vocab128")
    assert not can_run("RMU", "U_vocab128")
    assert can_run("GA+GD", "U_vocab128")


# --- measurements, where the answer is known ---


def entry_of(mark, topic=""):
    return next(e for e in DIFFERENCES if e.mark == mark and topic in e.topic)


def test_agreement_of_gradients():
    a, b = {("x", "logits"): torch.tensor([3.0, 4.0])}, {("x", "logits"): torch.tensor([0.0, 10.0])}
    zero = {("x", "logits"): torch.zeros(2)}
    assert agreement(a, b) == pytest.approx((0.8, 2.0))
    assert agreement(a, {})[1] == 0
    assert math.isinf(agreement(zero, a).ratio)
    assert math.isnan(agreement(zero, zero).ratio)
    assert agreement({**a, ("y", "logits"): torch.tensor([5.0])}, a).ratio == pytest.approx(
        0.5**0.5
    )
    assert norm({("x", "logits"): torch.tensor([1e-15])}) == 0


def test_dpo_differs_by_its_factor_alone():
    for row in fixture_rows(entry_of("C-14")):
        assert row.value / row.plain == pytest.approx(0.1 / 2)
        assert row.gradients == pytest.approx((1.0, 0.1 / 2))


def test_equal_lengths_hide_what_only_lengths_show():
    for mark in ("C-11", "C-15"):
        rows = {row.where: row for row in fixture_rows(entry_of(mark)) if row.form.runs[:2] != "XX"}
        assert rows["C_pretrain"].gradients == pytest.approx((1.0, 1.0))
    rows = {row.where: row for row in fixture_rows(entry_of("C-15"))}
    assert rows["F_edge"].gradients.cosine < 0.9


def test_npo_of_muse_changes_no_probability_at_the_start():
    rows = [r for r in fixture_rows(entry_of("C-04", "NPO")) if r.form.notation == "NPO-MUSE"]
    moves = {row.where: row.moves for row in rows}
    assert moves.pop(START) == 0
    assert all(0 < share < 0.05 for share in moves.values())


def test_padding_dilutes_means_over_all_positions_and_nothing_else():
    for entry in (e for e in DIFFERENCES if e.padded):
        for row in padded_rows(entry):
            method = method_of(row.form.runs)
            terms = [t for t in method.objective.terms if t.weight]
            mean = all(
                t.is_token and t.averaged_over == "all" and t.averaged_by == "tokens" for t in terms
            )
            assert (row.pulls[-1] < 0.2) == mean, row.form.runs
            if not mean and "MUSE" not in row.form.runs:
                assert row.values == pytest.approx([row.values[0]] * 3)
                assert row.pulls == pytest.approx([1.0] * 3)


def test_readings_of_egup_with_a_known_effect():
    ten, thousand = (r for r in worked_rows(entry_of("E-07")) if r.base == "GA")
    assert (ten.gradients["hidden"].ratio, thousand.gradients["hidden"].ratio) == pytest.approx(
        (10, 1000)
    )
    for row in worked_rows(entry_of("E-04")):
        assert row.gradients["answers"] == pytest.approx((1.0, 1 / 5))
    for row in worked_rows(entry_of("E-10")):
        assert math.isinf(row.gradients["proxies"].ratio)
    for row in worked_rows(entry_of("E-17")):
        assert row.gradients["hidden"].ratio == 0
    for row in worked_rows(entry_of("E-08")):
        if row.form.notation.endswith("objective)") and row.base == "GA":
            assert row.value == pytest.approx(row.plain, rel=1e-12)
            assert row.gradients["answers"] == pytest.approx((1.0, 1.0), rel=1e-12)


@pytest.mark.parametrize("base", BASES)
def test_the_worked_example_gives_the_stored_totals(base):
    """The rows of the page and the golden totals are two ways to the same number."""
    stored = json.loads(
        lzma.decompress((GOLDEN / "egup_uipe_worked_examples.json.xz").read_bytes())
    )
    example = next(t for t in stored["totals"] if t["base"] == base and t["k"] == 1.0)
    options = f"k=1, lambda_c={example['lambda_c']}, mu={example['mu']}"
    worked = run_worked(f"EGUP({base}, {options})")
    retain = example["alpha"] * stored["inputs"]["retain_loss"]
    assert worked.ran.value + retain == pytest.approx(example["total_EGUP"], rel=1e-12)


# --- text ---


def test_numbers_do_not_depend_on_the_last_bits():
    for exact in (0.1875, 0.46875, 2.5, 1 / 9, 12345.0, 6.25e-7):
        for value in (exact, math.nextafter(exact, 0), math.nextafter(exact, math.inf)):
            assert number(value, 3) == number(exact, 3)
            assert difference(value, 1.0) == difference(exact, 1.0)
    assert number(math.nan) == "-"
    assert number(-11784.15) == "-11780"
    assert number(6.25e-7, 3) == "6.25e-7"
    assert number(3875020.0, 3) == "3.88e6"
    assert number(1e-17) == "0"


def test_differences_in_words():
    assert difference(1.5, 1.0) == "+50%"
    assert difference(-1.5, -1.0) == "-50%"
    assert difference(20.0, 1.0) == "x 20"
    assert (difference(0.0, 0.0), difference(1.0, 0.0), difference(1.0, 1.0)) == ("0", "-", "0")
    assert [cosine(v) for v in (1.0, 0.99999, 0.5, -1e-18)] == ["1", ">0.9999", "0.5000", "0.0000"]
    assert ratio(math.inf) == "plain is 0"
    assert cosines([math.nan]) == span([math.nan]) == "-"
    assert span([0.5, math.nan, 2.0]) == "0.5 to 2"


def test_the_page_has_a_section_for_every_entry():
    text = differences_text()
    for entry in DIFFERENCES:
        assert f"\n### {entry.mark}: {entry.topic}\n" in text
        assert all(form.does.replace("|", "\\|") in text for form in entry.forms)


def test_the_plain_form_is_the_default():
    """What the register calls plain is what a notation without options gives."""
    for entry in DIFFERENCES:
        text = entry.plain.notation
        if text and entry.mark.startswith("E"):
            name = text.partition("(")[0]
            assert parse(text).objective == parse(f"{name}(GA)").objective
