"""The comparator of perf/ and ours take the same steps; what is made of the measurements."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from expunge.data import load_rows, make_template
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

PERF = Path(__file__).resolve().parents[2] / "perf"


@pytest.fixture
def perf(monkeypatch):
    """Imports a module of perf/ by name; none of them stays loaded."""
    monkeypatch.syspath_prepend(str(PERF))
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == PERF:
            del sys.modules[name]


class Log:
    """A gate that is always open, or until a number of steps."""

    def __init__(self, limit=None):
        self.limit, self.facts, self.steps = limit, None, []

    def ready(self, facts):
        self.facts = facts

    def go(self):
        return self.limit is None or len(self.steps) < self.limit

    def report(self, step):
        self.steps.append(step)


def ran(perf, side, work, *, steps=3, rows=3, precision="fp32", limit=None, **changes):
    """The log of one side on a tiny model and twelve facts."""
    sides, works, common = perf("sides"), perf("works"), perf("common")
    facts = toy_facts(18)
    tokenizer = tiny_tokenizer()
    setup = sides.Setup(
        model=tiny_model(tokenizer),
        template=make_template(tokenizer, "auto"),
        rows=common.TofuRows(
            load_rows(facts[:8], name="forget"),
            load_rows(facts[8:], name="retain"),
            [fact["answer"] for fact in facts[8:16]],
        ),
    )
    given = {"learning_rate": 1e-3, **changes}
    spec = works.Spec(
        side=side, work=works.WORKS[work], precision=precision, rows=rows, steps=steps, model="",
        attention="", **given,
    )  # fmt: skip
    log = Log(limit)
    sides.run(spec, setup, log)
    return log


@pytest.mark.parametrize("work", ["graddiff", "npo_gd"])
def test_both_sides_have_one_trajectory(perf, work) -> None:
    comparing = perf("comparing")
    naive, ours = ran(perf, "naive", work), ran(perf, "ours", work)

    found = comparing.trajectory(work, "fp32", naive.steps, ours.steps)
    assert len(naive.steps) == 3
    assert found.difference <= comparing.TOLERANCE, found
    assert naive.facts.tokens == ours.facts.tokens
    assert naive.facts.held_bytes == ours.facts.held_bytes


def test_unused_losses_change_no_value(perf) -> None:
    plain = ran(perf, "naive", "npo_gd", steps=2)
    doubled = ran(perf, "naive", "npo_gd", steps=2, doubled=True)
    terms = [[(step.forget, step.retain) for step in log.steps] for log in (plain, doubled)]
    assert terms[0] == terms[1]
    assert terms[0][0][0] == pytest.approx(2 / 0.1 * math.log(2))  # equal to the reference


@pytest.mark.parametrize("work", ["egup", "lora"])
def test_other_works_run_their_steps(perf, work) -> None:
    log = ran(perf, "ours", work, steps=2)
    assert len(log.steps) == 2
    plain = ran(perf, "ours", "npo_gd", steps=1)
    flops = (log.facts.tokens[0].flops, plain.facts.tokens[0].flops)
    if work == "lora":
        assert log.facts.held_bytes < 2 * plain.facts.held_bytes / 4
        assert flops[0] < flops[1]
    else:
        assert flops[0] > flops[1]  # the proxies


@pytest.mark.parametrize("side", ["naive", "ours"])
def test_a_side_can_be_ended_early(perf, side) -> None:
    assert len(ran(perf, side, "graddiff", steps=3, limit=1).steps) == 1


@pytest.mark.parametrize("change", [{"learning_rate": 2e-3}, {"seed": 1}])
def test_another_update_or_other_rows_are_refused(perf, change) -> None:
    comparing, works = perf("comparing"), perf("works")
    naive = ran(perf, "naive", "npo_gd").steps
    ours = ran(perf, "ours", "npo_gd", **change).steps
    comparison = comparing.Comparison(None)
    with pytest.raises(comparing.Refused, match="npo_gd: the losses of both sides differ"):
        comparison._agree(works.WORKS["npo_gd"], naive, ours)
    assert comparison.agreed == {}


def test_a_loss_that_is_no_number_never_agrees(perf) -> None:
    comparing, sides = perf("comparing"), perf("sides")
    steps = [sides.Step(1.0, 2.0, value, 0) for value in (1.0, math.nan, 1.0)]
    assert math.isnan(comparing.trajectory("npo_gd", "fp32", steps, steps).difference)


def test_cross_entropy_is_a_mean_over_labels(perf) -> None:
    """Two rows with 1 and 2 labels: (ln 2 + 2 ln 4) / 3 when every label has that probability."""
    naive = perf("naive")
    logits = torch.zeros(2, 4, 4)
    logits[0, 0, 1] = math.log(3)  # 3 / (3 + 1 + 1 + 1) = 1/2
    labels = torch.tensor([[-100, 1, -100, -100], [-100, -100, 2, 3]])
    found = naive.cross_entropy(logits, labels)
    assert found.item() == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)


def test_padding_is_on_the_right_and_has_no_label(perf) -> None:
    rows = [SimpleNamespace(input_ids=(5, 6, 7), num_prompt=1),
            SimpleNamespace(input_ids=(8, 9), num_prompt=1)]  # fmt: skip
    batch = perf("naive").padded(rows, 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]


def test_useful_operations_by_hand(perf) -> None:
    """One block with one 3x5 layer used twice, width 2, vocabulary 7, a row of 3 tokens, 2 answers.

    Layers 6 * 30 * 3 = 540; attention 6 * 2 * 2 * (1+2+3) = 144; head 6 * 4 * 7 * 2 = 336.
    Looked at only: a third of it. With an adapter: 4/6 of layers and head.
    """
    flops = perf("flops")
    shape = flops.Shape(
        linears=(flops.Linear(3, 5, 2),), blocks=1, attention_width=2, hidden=4, vocabulary=7
    )
    row = SimpleNamespace(input_ids=(1, 2, 3), num_labels=2)
    assert flops.step_flops(shape, [row]) == 540 + 144 + 336
    assert flops.step_flops(shape, [], forward_only=[row]) == (540 + 144 + 336) / 3
    assert flops.step_flops(shape, [row], moves_weights=False) == 360 + 144 + 224


def test_the_shape_counts_layers_without_the_head(perf) -> None:
    """Width 32, 4 heads of 8, 2 of them for keys: q and o 32x32, k and v 32x16, three of 32x64."""
    tokenizer = tiny_tokenizer()
    shape = perf("flops").shape_of(tiny_model(tokenizer))
    assert shape.linear_parameters == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert (shape.blocks, shape.attention_width) == (2, 32)
    assert (shape.hidden, shape.vocabulary) == (32, len(tokenizer))


@pytest.mark.parametrize(
    ("dtype", "options", "expected"),
    [
        (torch.float32, {}, 4 + 4 + 8),
        (torch.float32, {"optimizer": "adamw_8bit"}, 4 + 4 + 2),
        (torch.bfloat16, {"master_weights": "stochastic_rounding"}, 2 + 2 + 4),
        (torch.bfloat16, {"master_weights": "float32"}, 2 + 2 + 4 + 8),
    ],
)
def test_what_a_training_holds(perf, dtype, options, expected) -> None:
    """Bytes per weight: itself, gradient, moments and master; a frozen weight is only itself."""
    layer = torch.nn.Linear(3, 5, bias=False, dtype=dtype)
    assert perf("sides").held_bytes(layer, options) == 15 * expected
    assert perf("sides").held_bytes(layer.requires_grad_(False), options) == 15 * dtype.itemsize


def test_the_ceiling_is_a_speed(perf) -> None:
    ceiling, flops = perf("ceiling"), perf("flops")
    shape = flops.Shape(
        linears=(flops.Linear(8, 8, 2),), blocks=1, attention_width=8, hidden=8, vocabulary=16
    )
    products = ceiling.Products(shape=shape, tokens=4, answers=2)
    found = ceiling.measure_ceiling(torch.bfloat16, products, squares=(16,), repeats=1)
    assert 0 < found.model < math.inf
    assert 0 < found.square < math.inf


def test_both_take_turns_and_warm_up(perf) -> None:
    calls = []

    def side(name, seconds):
        def work():
            calls.append(name)
            return seconds * len(calls)

        return work

    common = perf("common")
    pairs = common.alternate(side("a", 2.0), side("b", 1.0), repeats=2, warmup=1, pause=0)
    assert "".join(calls) == "ababab"
    assert pairs == [common.Pair(6.0, 4.0), common.Pair(10.0, 6.0)]
    assert common.ratios(pairs) == common.Spread(min=1.5, median=(1.5 + 5 / 3) / 2, max=5 / 3, n=2)


def test_the_peak_can_be_taken_anew(perf) -> None:
    common = perf("common")
    block = bytearray(64 * 2**20)
    high = common.peak_bytes()
    assert high >= len(block)
    del block
    if common.reset_peak():
        assert common.peak_bytes() < high


def test_commands_are_shown_without_places(perf, monkeypatch) -> None:
    words = ["run.py", "--vs", "naive", "--output", "/tmp/x.json", "--model=/tmp/m", "--rows", "4"]
    monkeypatch.setattr(sys, "argv", [str(PERF / "run.py"), *words[1:]])
    shown = perf("common").command_line(hide=("--output", "--model"))
    assert shown == "python perf/run.py --vs naive --rows 4"


# --- documents ---


def line(work="graddiff", **changes):
    """A line of a result as comparing.py makes it."""
    one = {"min": 1.0, "median": 2.0, "max": 3.0, "n": 5}
    side = {"peak_gib": 4.0, "held_gib": 2.0, "libraries_gib": 0.5, "above_gib": 2.0}
    return {
        "work": work, "title": "GradDiff step", "precision": "fp32", "rows": 4, "method": "GA+GD",
        "trajectory": {"loss": "graddiff", "steps": 3, "difference": 2e-7},
        "target": 1.5, "ratio": one, "ratio_of_totals": 1.9, "seconds": {"naive": one, "ours": one},
        "prepare_seconds": {"naive": 0.1, "ours": 0.2},
        "tokens": {"real": 600.0, "padded": 700.0, "answers": 300.0}, "useful_gflop": 470.0,
        "ceiling_gflops": {"square": {**one, "median": 150.0}, "model": {**one, "median": 140.0}},
        "share": {"naive": {**one, "median": 0.3}, "ours": {"min": 0.4, "median": 0.5, "max": 0.6}},
        "share_of_best": {"naive": 0.25, "ours": 0.45}, "share_target": 0.75,
        "memory": {"naive": side, "ours": {**side, "peak_gib": 3.0, "above_gib": 1.0},
                   "share_above": 0.5, "share_above_without_libraries": 1 / 3},
        **changes,
    }  # fmt: skip


def result(**changes):
    return {
        "name": "steps", "kind": "steps", "date": "2025-01-02", "command": "python perf/run.py",
        "machine": {"processor": "A processor", "cores": 2, "threads": 2, "memory_gib": 23.5,
                    "accelerators": [], "system": "Linux x86_64"},
        "versions": {"torch": "2.9"},
        "settings": {"naive": "textbook", "attention": {"naive": "sdpa", "ours": "eager"},
                     "options": {"gradient_checkpointing": True}},
        "works": [line(), {**line(precision="bf16"), "refused": "they differ"}],
        **changes,
    }  # fmt: skip


PAGE = """# Performance

Before.

<!-- result: steps -->
old
<!-- end of result: steps -->

After.
"""


def test_results_are_drawn_between_their_marks(perf) -> None:
    page = perf("make_docs").with_results(PAGE, {"steps": result()})
    assert page.startswith("# Performance\n\nBefore.\n\n<!-- result: steps -->\n")
    assert page.endswith("\n<!-- end of result: steps -->\n\nAfter.\n")
    assert "old" not in page
    assert "| GradDiff step | fp32 | 4 | 5 | 2.00 | 2.00 | 1.00 / **2.00** / 3.00 | 1.90 " in page
    assert "| 1.5, met |" in page
    assert "| 470 | 150 | 140 | 30% | 40% / **50%** / 60% | 45% | 75%, missed |" in page
    assert "| 2.00 / 2.00 | 2.00 / 1.00 | **50%** | 33% |" in page
    assert "| graddiff | 3 | 2.0e-07 |" in page
    assert "No ratio for GradDiff step, bf16: they differ" in page
    assert "`gradient_checkpointing=True`" in page
    assert "2025-01-02 (A processor, 2 cores, 2 threads, 23.5 GiB, Linux x86_64; torch 2.9)" in page
    assert "    python perf/run.py\n" in page
    # Drawing again changes nothing.
    assert perf("make_docs").with_results(page, {"steps": result()}) == page


def test_a_result_without_a_place_goes_to_the_end(perf) -> None:
    own = {"title": "Start", "headers": ["what", "s"], "rows": [["import", 1.5]], "note": "Less."}
    other = result(kind="startup", tables=[own])
    page = perf("make_docs").with_results("# Performance\n", {"startup": other})
    assert "## startup\n\n<!-- result: startup -->\n\n**Start**\n\n| what | s |\n" in page
    assert "| import | 1.5 |\n\nLess." in page


def test_any_other_result_is_drawn_by_its_shape(perf) -> None:
    spread = {"min": 1.0, "median": 2.0, "max": 3.5, "n": 4}
    measured = {
        "seconds": 12345.6,
        "flat": True,
        "axes": {"rows": [{"x": 4, "step_seconds": 0.12345}, {"x": 8, "error": "none"}]},
        "import": {"wall": spread, "loads": ["a", "b"]},
    }
    page = perf("drawing").plain_tables({"name": "x", "date": "d", **measured})
    assert page == [
        "| what | value |\n| --- | ---: |\n| seconds | 12346 |\n| flat | yes |",
        "**axes: rows**",
        "| x | step seconds | error |\n| --- | ---: | ---: |\n| 4 | 0.123 |  |\n| 8 |  | none |",
        "**import**",
        "| what | value |\n| --- | ---: |\n| wall | 1 / **2** / 3.5 (n=4) |\n| loads | a, b |",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAGE.replace("steps -->", "other -->"), "there is no such result; there are: steps"),
        (PAGE.replace("end of", "stop of"), "the page has no line"),
    ],
)
def test_marks_that_fit_nothing_are_refused(perf, text, message) -> None:
    with pytest.raises(ValueError, match=message):
        perf("make_docs").with_results(text, {"steps": result()})


def test_the_page_is_what_the_results_say(perf) -> None:
    make_docs = perf("make_docs")
    found = {path.stem: json.loads(path.read_text()) for path in make_docs.RESULTS.glob("*.json")}
    written = make_docs.PAGE.read_text(encoding="utf-8")
    assert make_docs.with_results(written, found) == written, "run python perf/make_docs.py"


@pytest.mark.slow
@pytest.mark.parametrize("work", ["lora", "memory"])
def test_a_whole_run_on_a_tiny_model(perf, tmp_path, work) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    output = tmp_path / "steps.json"
    words = ["--vs", "naive", "--work", work, "--precision", "bf16", "--repeats", "2"]
    words += ["--threads", "1", "--model", str(tmp_path / "model"), "--output", str(output)]
    assert perf("run").main(words) == 0
    (found,) = json.loads(output.read_text(encoding="utf-8"))["works"]
    assert (found["work"], found["precision"]) == (work, "bf16")
    assert str(tmp_path) not in output.read_text(encoding="utf-8")
    assert found["title"] in perf("make_docs").draw(perf("common").load_result(output))
