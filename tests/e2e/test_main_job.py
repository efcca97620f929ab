"""From a user's files to a report through the command line, on a two-layer model."""

import json
import shutil

import pytest
import torch

from expunge.cli import main
from expunge.testing.tiny import CHAT_TEMPLATES, tiny_model, tiny_tokenizer, toy_facts

FACTS = toy_facts(24, perturbed=True)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model folder, data files and a proxy file."""
    root = tmp_path_factory.mktemp("e2e")
    tokenizer = tiny_tokenizer(CHAT_TEMPLATES["smollm2"])
    tiny_model(tokenizer).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    write_jsonl(root / "forget.jsonl", FACTS[:8])
    write_jsonl(root / "retain.jsonl", FACTS[8:])
    proxies = [{"question": f["question"], "proxy_answer": "Nobody knows."} for f in FACTS[:8]]
    write_jsonl(root / "proxies.jsonl", proxies)
    (root / "run.yaml").write_text(
        f"""
name: e2e
output_dir: {root}/run
model: {{path: {root}/base}}
data:
  forget: {root}/forget.jsonl
  retain: {root}/retain.jsonl
  proxies: {root}/proxies.jsonl
method: EGUP(NPO+GD)
training:
  {{learning_rate: 0.005, num_train_epochs: 3, effective_batch_size: 4, micro_batch_size: 2}}
finetune:
  training:
    {{learning_rate: 0.02, num_train_epochs: 30, effective_batch_size: 8, micro_batch_size: 8}}
evaluation: {{benchmark: custom, max_new_tokens: 12}}
"""
    )
    return root


@pytest.fixture(scope="module")
def cache_folder(place):
    patch = pytest.MonkeyPatch()
    patch.setenv("EXPUNGE_CACHE", str(place / "cache"))
    yield place / "cache"
    patch.undo()


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(place, cache_folder):
    assert run("unlearn", place / "run.yaml") == 0
    return place / "run"


def results(folder, role):
    return json.loads((folder / "evaluation" / role / "results.json").read_text())["scores"]


def test_the_target_model_learns_and_the_unlearned_model_forgets(finished):
    def probability(role, probe):
        return results(finished, role)[f"{probe}/probability"]["value"]

    assert probability("target", "forget") > 5 * probability("base", "forget")
    assert probability("unlearned", "forget") < 0.8 * probability("target", "forget")
    assert probability("unlearned", "retain") > 2 * probability("base", "retain")
    assert results(finished, "retain")["forget_quality"]["value"] == 1.0


def test_every_file_of_a_run_is_there(finished):
    for name in ("config.yaml", "run.json", "log.jsonl", "report.html", "report.md", "report.csv"):
        assert (finished / name).stat().st_size > 0, name
    manifest = json.loads((finished / "run.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["method"]["notation"] == "EGUP(NPO+GD)"
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert set(log[0]["terms"]) == {"forget/npo", "retain/nll", "contrast", "proxy_penalty"}


def test_the_model_loads_without_expunge(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello?"}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        assert torch.isfinite(model(**text).logits).all()
    assert "EGUP" in (finished / "model" / "README.md").read_text()


def test_a_second_run_trains_nothing(finished, place, capsys):
    before = (finished / "model" / "model.safetensors").stat().st_mtime_ns
    assert run("unlearn", place / "run.yaml") == 0
    assert (finished / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert "nothing to train" in capsys.readouterr().out


def test_two_runs_are_identical(finished, place, cache_folder):
    assert run("unlearn", place / "run.yaml", "--output", place / "again") == 0
    first, second = (f / "model" / "model.safetensors" for f in (finished, place / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_score_needs_no_model(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, ignore=shutil.ignore_patterns("model"))
    before = results(copy, "unlearned")
    (copy / "evaluation" / "unlearned" / "results.json").unlink()
    assert run("score", copy) == 0
    assert results(copy, "unlearned") == before
    assert "forget/probability" in capsys.readouterr().out


def test_without_a_retain_model_forget_quality_is_absent_with_its_reason(finished, place, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "evaluation" / "retain")
    assert run("score", copy) == 0
    score = results(copy, "unlearned")["forget_quality"]
    assert score["value"] is None
    assert "retain model" in score["reason"]


def test_evaluate_and_compare(finished, place, tmp_path, capsys):
    other = tmp_path / "other"
    assert (
        run(
            "evaluate", place / "base", "--forget", place / "forget.jsonl",
            "--retain", place / "retain.jsonl", "--retain-run", finished, "--output", other,
            "evaluation.max_new_tokens=12",
        )
        == 0
    )  # fmt: skip
    assert results(other, "unlearned")["forget_quality"]["value"] is not None
    assert run("report", finished, other, "--output", tmp_path / "report") == 0
    assert (tmp_path / "report" / "comparison.html").is_file()


@pytest.mark.parametrize(
    "method", ["GA+GD", "NPO+KL", "IDK+AP", "ME+GD", "UIPE(NPO+GD, alpha=0.5)", "EGU(NPO+GD)"]
)
def test_every_method_runs_from_flags(place, cache_folder, method, tmp_path):
    assert (
        run(
            "unlearn", place / "run.yaml", "--method", method, "--output", tmp_path / "run",
            "training.max_steps=2", "evaluation=null",
        )
        == 0
    )  # fmt: skip
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_lora_and_bfloat16(place, cache_folder, tmp_path):
    assert (
        run(
            "unlearn", place / "run.yaml", "--output", tmp_path / "run", "training.max_steps=2",
            "model.dtype=bfloat16", "training.precision=mixed", "lora={r: 4}", "finetune=null",
            "evaluation=null",
        )
        == 0
    )  # fmt: skip
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert not [name for name in weights if "lora" in name]


def test_uipe_extrapolates_the_update_of_its_base(place, cache_folder, tmp_path):
    from safetensors.torch import load_file

    common = ["finetune=null", "evaluation=null", "training.max_steps=2"]
    names = {"base": "NPO+GD", "twice": "UIPE(NPO+GD, alpha=1)", "back": "UIPE(NPO+GD, alpha=-1)"}
    weights = {"start": load_file(place / "base" / "model.safetensors")}
    for name, method in names.items():
        out = tmp_path / name
        assert run("unlearn", place / "run.yaml", "--method", method, "--output", out, *common) == 0
        weights[name] = load_file(out / "model" / "model.safetensors")
    for key, start in weights["start"].items():
        end = weights["base"][key]
        torch.testing.assert_close(weights["twice"][key], end + (end - start), rtol=0, atol=1e-6)
        assert torch.equal(weights["back"][key], start)


def test_an_automatic_alpha_is_in_manifest_and_report(place, cache_folder, finished):
    folder = place / "auto"
    method = "UIPE(NPO+GD, alpha=auto)"
    budget = ("--budget", "utility=0.95", "--budget", "rows=5")
    assert run("unlearn", place / "run.yaml", "--method", method, *budget, "--output", folder) == 0
    search = json.loads((folder / "run.json").read_text())["diagnostics"]["alpha_search"]
    assert search["budget"] == 0.95
    shares = {point["alpha"]: point["utility"] for point in search["curve"]}
    assert shares.get(search["alpha"], 1.0) >= 0.95
    assert "Automatic alpha" in (folder / "report.html").read_text()


def test_a_stop_rule_ends_the_run_and_says_why(place, cache_folder, finished):
    folder = place / "stopped"
    options = ("training.stop_at=[proxy]", "training.stop_every=1", "training.learning_rate=0.02")
    arguments = ("--method", "GA", "--output", folder, "training.num_train_epochs=20", *options)
    assert run("unlearn", place / "run.yaml", *arguments) == 0
    checks = json.loads((folder / "run.json").read_text())["diagnostics"]["stop_checks"]
    assert "past their proxies" in checks[-1]["reason"]
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert len(lines) == checks[-1]["step"] < 40


def test_a_combined_model_goes_through_every_verb(place, cache_folder, finished, capsys):
    folder = place / "whp"
    assert run("unlearn", place / "run.yaml", "--method", "WHP(alpha=4)", "--output", folder) == 0
    card = (folder / "model" / "README.md").read_text()
    assert "import expunge.models.combined" in card
    assert "whoever has the folder has what was to be forgotten" in card
    score = results(folder, "unlearned")["forget/probability"]
    assert score["n"] == 8
    assert score["value"] < results(folder, "target")["forget/probability"]["value"]
    assert run("evaluate", folder / "model", place / "run.yaml", "--output", place / "again") == 0
    again = results(place / "again", "unlearned")["forget/probability"]
    assert again["value"] == pytest.approx(score["value"], abs=1e-6)


def test_altpo_from_a_file(place, cache_folder, finished):
    alternates = [
        {"question": fact["question"], "answer": fact["answer"], "alternate": text}
        for fact in FACTS[:8]
        for text in ("Probably a gardener from Oslo.", "A chemist who lived in Quito.")
    ]
    file = write_jsonl(place / "alternates.jsonl", alternates)
    arguments = ("--method", "AltPO+GD", "--output", place / "altpo", f"data.alternates={file}")
    assert run("unlearn", place / "run.yaml", *arguments, "training.num_train_epochs=1") == 0
    assert len((place / "altpo" / "log.jsonl").read_text().splitlines()) == 4
