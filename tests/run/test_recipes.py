"""Every recipe is complete, passes the checks, and trains with a tiny model in its place."""

from __future__ import annotations

import functools
import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import expunge.models.loading
import expunge.run.check_data
from expunge.core.errors import InputError
from expunge.data import load_tofu
from expunge.run.arithmetic import plan_batches
from expunge.run.check import check
from expunge.run.config import RunConfig
from expunge.run.methods import method_of
from expunge.run.pipelines import Context, unlearned
from expunge.run.recipes import find_recipe, recipe_header, recipe_names
from expunge.run.resolve import load_config
from expunge.run.sections import DataSource
from expunge.run.ui import SilentUi
from expunge.testing.muse import tiny_muse
from expunge.testing.real_world import tiny_real_world
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

NAMES = recipe_names()
MODELS = ("phi15", "llama2_7b")
GENERATED = [name for name in NAMES if "/" in name and not name.startswith("benchmarks/")]
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# What a reader must not have to look up elsewhere.
SECTIONS = {"name", "output_dir", "seed", "model", "template", "data", "method", "training", "lora",
            "finetune", "evaluation"}  # fmt: skip
STATED = {"learning_rate", "num_train_epochs", "effective_batch_size", "micro_batch_size",
          "weight_decay", "lr_scheduler_type", "max_grad_norm", "precision"}  # fmt: skip
WARMUPS = {"warmup_steps", "warmup_ratio", "warmup_epochs"}


# What there is ------------------------------------------------------------------------------------


def splits(pattern: str) -> set[str]:
    return {pattern.format(f"forget{size}") for size in ("01", "05", "10")}


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (
            "tofu",
            {
                *(f"{m}_{k}" for m in ("ga", "ga_gd", "ga_kl", "idk") for k in MODELS),
                *(f"{m}_{k}" for m in ("npo", "npo_gd", "npo_kl") for k in MODELS),
                *("simnpo_gd_llama2_7b_forget05", "simnpo_gd_llama2_7b_forget10"),
            },
        ),
        (
            "closer_look",
            {
                *splits("me_gd_{}"), *splits("idk_ap_{}"), *splits("dpo_gd_{}"),
                *splits("me_gd_lora_{}"), *splits("idk_ap_lora_{}"),
                *splits("continual_me_gd_{}"), *splits("continual_idk_ap_{}"),
                *("real_world_me_gd", "real_world_idk_ap"),
            },
        ),
        (
            "egup",
            {
                f"{wrapper}_{base}_{name}"
                for wrapper in ("egu", "egup")
                for base in ("ga", "ga_gd", "npo", "npo_gd")
                for name in splits("phi15_{}") | splits("llama2_7b_{}")
            }
            | {f"muse_{c}_egup_{b}" for c in ("news", "books") for b in ("ga", "ga_gd", "npo_gd")},
        ),
        ("uipe", {n for b in ("ga", "ga_gd", "ga_kl", "npo") for n in splits(b + "_llama2_7b_{}")}),
        (
            "muse",
            {
                f"{corpus}_{method}"
                for corpus in ("news", "books")
                for method in ("ga", "ga_gd", "ga_kl", "npo", "npo_gd", "npo_kl", "simnpo_gd",
                               "task_vector", "whp")
            },
        ),
        (
            "open_unlearning",
            {
                f"tofu_{method}_llama32_1b"
                for method in ("ga", "ga_gd", "npo_gd", "dpo_gd", "simnpo_gd", "wga_gd",
                               "satimp_gd", "ceu", "undial", "pdu_gd", "rmu", "altpo_gd")
            }
            | {f"muse_{c}_{m}" for c in ("news", "books") for m in ("ga_gd", "npo_gd", "rmu")}
            | {"wmdp_bio_rmu", "wmdp_cyber_rmu"},
        ),
        ("wmdp", {"rmu_bio", "rmu_cyber", "rmu_zephyr_bio", "rmu_zephyr_cyber", "simnpo_gd_bio"}),
        ("llmu", {"harm_opt_1_3b", "tofu_llama2_7b"}),
        ("uld", {"tofu_llama2_7b"}),
    ],
)  # fmt: skip
def test_the_published_settings_are_there(folder: str, expected: set[str]) -> None:
    assert {f"{folder}/{name}" for name in expected} <= set(NAMES)


def test_the_files_are_what_the_tables_say(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("make_recipes")
    recipes = script.recipes()

    assert {recipe.name for recipe in recipes} | set(script.BY_HAND) == set(NAMES)
    for recipe in recipes:
        written = find_recipe(recipe.name).read_text(encoding="utf-8")
        assert recipe.text() == written, f"{recipe.name}: run python scripts/make_recipes.py"
    # Files that no table has any more are deleted, those by hand stay.
    (tmp_path / "tofu").mkdir()
    (tmp_path / "tofu" / "old.yaml").touch()
    (tmp_path / "demo.yaml").touch()
    script.main([str(tmp_path)])
    found = {path.relative_to(tmp_path).with_suffix("").as_posix()
             for path in tmp_path.rglob("*.yaml")}  # fmt: skip
    by_hand = set(script.BY_HAND) - {"demo"}
    assert found == set(NAMES) - by_hand


def test_an_unknown_recipe_suggests_one() -> None:
    with pytest.raises(InputError, match="Did you mean tofu/npo_gd_phi15"):
        find_recipe("tofu/npo_gd_phi")


# Every file ---------------------------------------------------------------------------------------


@functools.cache
def config_of(name: str) -> RunConfig:
    return load_config(find_recipe(name))


def notation(name: str) -> str:
    method = config_of(name).method
    assert method is not None
    return method.name


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_complete_and_cites_its_numbers(name: str) -> None:
    config, header = config_of(name), recipe_header(name)
    raw = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))

    assert config.method is not None
    assert method_of(config.method).needs_retain <= (config.data.retain is not None)
    assert raw["training"].keys() >= STATED
    assert raw["training"].keys() & WARMUPS
    assert plan_batches(config.training, 400, world_size=1).total_steps > 1
    assert header.partition("\n")[0].endswith(".")
    assert header.endswith(".")
    if name in GENERATED:
        assert raw.keys() == SECTIONS
        assert config.name == name.replace("/", "-").replace("_", "-")
        assert "\nNumbers: " in header
        assert re.search(r"arXiv:\d{4}\.\d{5}|open-unlearning d3d7cf9", header)
    if config.finetune is not None:
        assert raw["finetune"]["training"].keys() >= STATED


def test_forget_and_retain_split_make_up_the_whole() -> None:
    pairs = {
        (data.forget.source, data.retain.source)
        for data in (config_of(name).data for name in GENERATED)
        if data.forget.source.startswith("tofu:") and data.retain is not None
    }
    assert pairs == {(f"tofu:forget{k:02}", f"tofu:retain{100 - k}") for k in (1, 5, 10)}


def test_what_averages_over_padding_has_rows_padded_as_there() -> None:
    # llm_unlearn pads to the longest row of a batch; MUSE's pieces and WMDP's are another matter.
    padded = {name for name in GENERATED if re.search(r"(ME|KL)\([^)]*=all", notation(name))}
    padded.discard("llmu/harm_opt_1_3b")
    lengths = {name: config_of(name).training.pad_to for name in GENERATED}

    assert {name for name, length in lengths.items() if length is not None} == padded
    assert all(lengths[name] == config_of(name).data.max_length for name in padded)


@pytest.mark.parametrize(
    ("name", "method", "rate", "epochs", "batch"),
    [
        ("tofu/ga_phi15", "GA", 2e-5, 5, 32),
        ("tofu/npo_kl_llama2_7b", "NPO+KL(positions=all)", 1e-5, 10, 32),
        ("tofu/simnpo_gd_llama2_7b_forget05", "SimNPO(beta=2.5, weight=0.1375)+GD", 1e-5, 10, 32),
        ("closer_look/real_world_idk_ap", "IDK+AP", 1e-5, 5, 32),
        ("egup/egup_npo_gd_phi15_forget05", "EGUP(NPO+GD, k=1, mu=0.001)", 2e-5, 1, 16),
        ("egup/egu_ga_llama2_7b_forget01", "EGU(GA, k=1)", 1e-5, 2, 8),
        ("egup/muse_news_egup_ga_gd", "EGUP(GA+GD, k=1, mu=0.001)", 1e-5, 7, 16),
        ("uipe/npo_llama2_7b_forget05", "UIPE(NPO, alpha=0.5)", 1e-5, 10, 32),
        ("muse/books_ga_kl", "GA+KL-MUSE", 1e-5, 4, 32),
        ("muse/news_task_vector", "TASKVECTOR(REINFORCE, alpha=16)", 1e-5, 10, 32),
        ("open_unlearning/tofu_undial_llama32_1b", "UNDIAL-OU(beta=10)", 1e-4, 10, 32),
        ("wmdp/simnpo_gd_bio", "SimNPO-WMDP(beta=0.1)+GD", 9.5e-6, 5, 4),
    ],
)
def test_numbers(name: str, method: str, rate: float, epochs: int, batch: int) -> None:
    training = config_of(name).training

    assert notation(name) == method
    assert training.learning_rate == rate
    assert training.num_train_epochs == epochs
    assert training.effective_batch_size == batch


def benchmark_of(name: str) -> tuple[str | None, str | None, object]:
    section = config_of(name).evaluation
    assert section is not None
    return section.benchmark, section.preset, section.options.get("folder")


@pytest.mark.parametrize("name", GENERATED)
def test_a_recipe_is_measured_by_the_benchmark_of_its_data(name: str) -> None:
    found = benchmark_of(name)
    folder, _, rest = name.partition("/")
    corpus = next((c for c in ("news", "books") if c in rest), None)
    if corpus is not None:
        preset = "muse_ou" if folder == "open_unlearning" else "muse"
        assert found == ("muse", preset, f"muse-bench/MUSE-{corpus.capitalize()}")
    elif "real_world" in rest:
        assert found == ("real_world", "real_world_cl", "real_world")
    elif "wmdp" in name:
        section = config_of(name).evaluation
        assert section is not None
        assert section.options == {"topic": "cyber" if "cyber" in name else "bio"}
        assert found[0] == "wmdp"
        assert section.harness.tasks == ("benchmark",)
    else:
        assert found[0] == ("custom" if name == "llmu/harm_opt_1_3b" else "tofu")


# With a tiny model --------------------------------------------------------------------------------

NUM_ROWS = 6
FACTS = [fact | {"best_answer": fact["answer"]} for fact in toy_facts(18)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four blocks, and files for data that are not in the package."""
    root = tmp_path_factory.mktemp("recipes")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, num_layers=4, max_length=2048).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    texts = [{"text": f"{fact['question']} {fact['answer']} " * 4} for fact in FACTS]
    for kind, rows in (("questions", FACTS), ("text", texts)):
        write(root / f"forget_{kind}.jsonl", rows[:NUM_ROWS])
        write(root / f"retain_{kind}.jsonl", rows[NUM_ROWS:])
    tiny_muse(root / "muse")
    (root / "people").mkdir()
    tiny_real_world(root / "people")
    return root


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(expunge.models.loading, "load_tokenizer", TOKENIZER)
    monkeypatch.setattr(expunge.run.check_data, "load_source", ROWS)


# The tokenizer and the rows of a split are the same for all recipes.
TOKENIZER = functools.cache(expunge.models.loading.load_tokenizer)
ROWS = functools.cache(expunge.run.check_data.load_source)


def in_place(name: str, place: Path, *, packaged: bool = True) -> tuple[str, ...]:
    """Overrides that put the tiny model and a few local rows into a recipe.

    Rows of TOFU stay TOFU's, if `packaged`; else they are local, too, and shorter.
    """
    data = config_of(name).data
    # The tiny model has four blocks; the last one has no block behind it to steer.
    method = re.sub(r"\blayer=\d+", "layer=2", notation(name))
    method = re.sub(r"\blayers=\d+", "layers=2", method)
    found = [f"model.path={place / 'model'}", f"method={method}"]
    assert data.retain is not None
    for part, source in (("forget", data.forget), ("retain", data.retain)):
        if source.source.startswith("tofu:") and packaged:
            start = 0 if source.rows is None else source.rows[0]
            found.append(f"data.{part}.rows=[{start}, {start + NUM_ROWS}]")
        else:
            kind = "text" if is_text(source.source) else "questions"
            path = place / f"{part}_{kind}.jsonl"
            if source.source == "real_world/forget.json":
                # Only what the folder of the evaluation asks about can be forgotten.
                path = place / "people" / "forget.json"
            found += [f"data.{part}={{source: {path}, columns: {columns(source)}}}"]
    questions = None
    if data.forget.source.startswith("tofu:") and packaged:
        rows = load_tofu(data.forget.source.removeprefix("tofu:"))[:NUM_ROWS]
        questions = [row["question"] for row in rows]
    if "EGUP" in method:
        found.append(f"data.proxies={answers(place, 'proxy_answer', questions)}")
    if "AltPO" in method:
        found.append(f"data.alternates={answers(place, 'alternate', questions)}")
    return (*found, *evaluation_in_place(name, place))


def evaluation_in_place(name: str, place: Path) -> list[str]:
    """Overrides that put local folders in place of those of the evaluation, and no tasks."""
    section = config_of(name).evaluation
    assert section is not None
    folder = {"muse": "muse", "real_world": "people"}.get(section.benchmark or "")
    found = [] if folder is None else [f"evaluation.options.folder={place / folder}"]
    return found + (["evaluation.harness.tasks=[]"] if section.harness.tasks else [])


def is_text(source: str) -> bool:
    return source.startswith(("muse-bench/", "wmdp/"))


def columns(source: DataSource) -> str:
    return json.dumps(source.columns.model_dump())


def answers(place: Path, column: str, questions: list[str] | None) -> Path:
    """A file with a proxy or alternate answer to each question; None: those of the local rows."""
    questions = questions or [fact["question"] for fact in FACTS[:NUM_ROWS]]
    rows = [{"question": q, column: f"Nobody knows {i}."} for i, q in enumerate(questions)]
    return write(place / f"{column}_{hash(tuple(questions))}.jsonl", rows)


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.usefixtures("_quick")
def test_recipe_passes_every_check(name: str, place: Path) -> None:
    report = check(load_config(find_recipe(name), *in_place(name, place)))

    assert report.problems == ()


def shape(name: str) -> tuple[Any, ...]:
    """What makes a training another kind of training: the method without its numbers."""
    config = config_of(name)
    method = re.sub(r"\d+(\.\d+)?", "#", notation(name))
    text = config.data.text_form if is_text(config.data.forget.source) else ""
    return method, text, config.training.trainable


ONE_OF_EACH = {shape(name): name for name in GENERATED}.values()
WITH_ADAPTERS = ("closer_look/idk_ap_lora_forget01", "egup/egup_npo_gd_llama2_7b_forget05")


@pytest.mark.parametrize("name", [*ONE_OF_EACH, *WITH_ADAPTERS])
@pytest.mark.usefixtures("_quick")
def test_recipe_trains(name: str, place: Path) -> None:
    config = load_config(find_recipe(name), *in_place(name, place, packaged=False))
    length = 32 if is_text(config_of(name).data.forget.source) else 128
    small = {"max_steps": 2, "effective_batch_size": 2, "micro_batch_size": 2, "save_steps": None}
    if config.training.pad_to is not None:
        small["pad_to"] = length
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update=small),
            "data": config.data.model_copy(update={"max_length": length}),
            "finetune": None,
            "evaluation": None,
        }
    )
    context = Context(config, SilentUi())
    folder = unlearned(context, config.model.path)

    log = [json.loads(line) for line in context.folder.log.read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    assert all(math.isfinite(value) for line in log for value in line["terms"].values())
    assert folder.is_dir()


def test_the_demo_passes_every_check(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    report = check(load_config(find_recipe("demo")), verb="demo")

    assert [p for p in report.problems if p.where != "model.path"] == []
    assert dict(report.facts)["forget set"].startswith("40 rows")
