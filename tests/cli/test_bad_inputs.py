"""Every bad input gets a message that finishes the thought, exit code 2 (or 1) and no traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.testing.tiny import toy_facts

Change = Callable[[Path], list[str]]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def edit(place: Path, old: str, new: str) -> list[str]:
    text = (place / "run.yaml").read_text(encoding="utf-8")
    assert old in text
    (place / "run.yaml").write_text(text.replace(old, new), encoding="utf-8")
    return ["run.yaml"]


def missing_config(place: Path) -> list[str]:
    return ["nowhere.yaml"]


def missing_file(place: Path) -> list[str]:
    return ["run.yaml", "--forget", "forgett.jsonl"]


def wrong_column(place: Path) -> list[str]:
    write_rows(place / "forget.jsonl", [{"prompt": "a", "completion": "b"}])
    return ["run.yaml"]


def empty_forget_set(place: Path) -> list[str]:
    (place / "forget.jsonl").write_text("", encoding="utf-8")
    return ["run.yaml"]


def overlap(place: Path) -> list[str]:
    write_rows(place / "retain.jsonl", toy_facts(10))
    return ["run.yaml"]


def unknown_method(place: Path) -> list[str]:
    return ["run.yaml", "--method", "NPOO+GD"]


def typo_in_key(place: Path) -> list[str]:
    return edit(place, "learning_rate:", "learning_rat:")


def key_of_another_tool(place: Path) -> list[str]:
    return ["run.yaml", "training.per_device_train_batch_size=4"]


def key_in_the_wrong_place(place: Path) -> list[str]:
    return ["run.yaml", "learning_rate=1e-5"]


def negative_learning_rate(place: Path) -> list[str]:
    return ["run.yaml", "training.learning_rate=-1e-5"]


def no_tokenizer(place: Path) -> list[str]:
    source = Path(read_model(place))
    shutil.copytree(source, place / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    return ["run.yaml", "--model", "bare"]


def read_model(place: Path) -> str:
    line = next(line for line in (place / "run.yaml").read_text().splitlines() if "path:" in line)
    return line.partition("path: ")[2].rstrip("}")


def no_such_model(place: Path) -> list[str]:
    return ["run.yaml", "--model", "./models/nope"]


def truncated_line(place: Path) -> list[str]:
    with (place / "forget.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"question": "Who wrote it?", "answ')
    return ["run.yaml"]


def data_not_utf8(place: Path) -> list[str]:
    with (place / "forget.jsonl").open("ab") as file:
        file.write('{"question": "Où?", "answer": "Là"}\n'.encode("latin-1"))
    return ["run.yaml"]


def config_not_utf8(place: Path) -> list[str]:
    with (place / "run.yaml").open("ab") as file:
        file.write("# café\n".encode("latin-1"))
    return ["run.yaml"]


def config_not_yaml(place: Path) -> list[str]:
    return edit(place, "method: NPO+GD", "method: [NPO")


def config_no_mapping(place: Path) -> list[str]:
    (place / "run.yaml").write_text("- NPO\n", encoding="utf-8")
    return ["run.yaml"]


def duplicate_key(place: Path) -> list[str]:
    return edit(place, "method: NPO+GD", "method: NPO+GD\nmethod: GA")


def wrong_type(place: Path) -> list[str]:
    return ["run.yaml", "training.effective_batch_size=many"]


def text_for_a_number(place: Path) -> list[str]:
    return edit(place, "effective_batch_size: 4", 'effective_batch_size: "4"')


def answer_too_long(place: Path) -> list[str]:
    facts = toy_facts(2)
    facts[1]["answer"] = "A very long story. " * 400
    write_rows(place / "forget.jsonl", facts)
    return ["run.yaml"]


def longer_than_the_context(place: Path) -> list[str]:
    return ["run.yaml", "data.max_length=4096"]


def uneven_batch(place: Path) -> list[str]:
    return ["run.yaml", "training.effective_batch_size=5"]


def two_warmups(place: Path) -> list[str]:
    return ["run.yaml", "training.warmup_steps=1", "training.warmup_ratio=0.1"]


def method_syntax(place: Path) -> list[str]:
    return ["run.yaml", "--method", "EGUP(NPO+GD, k=1"]


def alpha_no_number(place: Path) -> list[str]:
    return ["run.yaml", "--method", "UIPE(NPO+GD, alpha=strong)"]


def unknown_option_in_mapping(place: Path) -> list[str]:
    return ["run.yaml", "method.forget.betta=0.2"]


def egup_without_proxies(place: Path) -> list[str]:
    return ["run.yaml", "--method", "EGUP(NPO+GD)"]


def proxies_of_other_data(place: Path) -> list[str]:
    write_rows(place / "proxies.jsonl", [{"question": "Who?", "proxy_answer": "Nobody."}])
    return ["run.yaml", "--method", "EGUP(NPO+GD)", "--proxies", "proxies.jsonl"]


SERVER = "proxies.endpoint.url=http://localhost:8000/v1"


def two_writers(place: Path) -> list[str]:
    return ["run.yaml", "proxies.model=./model", SERVER, "proxies.endpoint.model=m"]


def two_writers_of_alternates(place: Path) -> list[str]:
    endpoint = "alternates.endpoint={url: http://localhost/v1, model: m}"
    return ["run.yaml", "alternates.model=./model", endpoint]


def endpoint_without_model(place: Path) -> list[str]:
    return ["run.yaml", SERVER]


def endpoint_without_scheme(place: Path) -> list[str]:
    return ["run.yaml", "proxies.endpoint={url: 'localhost:8000/v1', model: m}"]


def endpoint_of_one_request(place: Path) -> list[str]:
    url = "proxies.endpoint.url=http://localhost:8000/v1/chat/completions"
    return ["run.yaml", url, "proxies.endpoint.model=m"]


def key_instead_of_its_variable(place: Path) -> list[str]:
    key = "proxies.endpoint.api_key_env=sk-secret-123"
    return ["run.yaml", SERVER, "proxies.endpoint.model=m", key]


def key_in_the_url(place: Path) -> list[str]:
    url = "proxies.endpoint.url=https://me:sk-secret-123@models.example/v1"
    return ["run.yaml", url, "proxies.endpoint.model=m"]


def no_retain_set(place: Path) -> list[str]:
    return ["run.yaml", "data.retain=null"]


def useless_weights(place: Path) -> list[str]:
    method = "EGU(NPO+GD, scope=micro_batch)"
    return ["run.yaml", "--method", method, "training.micro_batch_size=1"]


def unknown_benchmark(place: Path) -> list[str]:
    return ["run.yaml", "--benchmark", "toffu"]


def unknown_preset(place: Path) -> list[str]:
    return ["run.yaml", "--benchmark", "tofu", "--preset", "tofu_klassic"]


def unknown_probe(place: Path) -> list[str]:
    return ["run.yaml", "evaluation.rows={retains: 3}"]


def impossible_role(place: Path) -> list[str]:
    return ["run.yaml", "evaluation.roles=[base, unlearned]"]


def no_retain_results(place: Path) -> list[str]:
    (place / "other").mkdir()
    return ["run.yaml", "--retain-run", "other"]


def missing_tracker(place: Path) -> list[str]:
    return ["run.yaml", "training.report_to=mlflow"]


def lora_and_pattern(place: Path) -> list[str]:
    return ["run.yaml", "lora={}", "training.trainable=mlp"]


def bad_pattern(place: Path) -> list[str]:
    return ["run.yaml", "training.trainable=(mlp"]


def output_is_a_file(place: Path) -> list[str]:
    (place / "taken").write_text("", encoding="utf-8")
    return ["run.yaml", "--output", "taken"]


def empty_rejections(place: Path) -> list[str]:
    (place / "no.txt").write_text("\n", encoding="utf-8")
    return ["run.yaml", "--method", "IDK", "data.rejections=no.txt"]


def two_files(place: Path) -> list[str]:
    return ["run.yaml", "other.yaml"]


def unknown_recipe(place: Path) -> list[str]:
    return ["tofu/npo_phi"]


def problem_of_a_recipe(place: Path) -> list[str]:
    return ["custom", "--forget", "nope.jsonl"]


def override_of_a_plain_value(place: Path) -> list[str]:
    return ["run.yaml", "name.first=x"]


def method(text: str, *more: str) -> Change:
    """A run with another method."""

    def change(place: Path) -> list[str]:
        return ["run.yaml", "--method", text, *more]

    change.__name__ = text
    return change


def plain_text_for_ap(place: Path) -> list[str]:
    (place / "book.txt").write_text("A tale of a lighthouse and a lost map. " * 30)
    return ["run.yaml", "--method", "IDK+AP", "--retain", "book.txt"]


def budget_of_more_rows(place: Path) -> list[str]:
    return ["run.yaml", "--method", "UIPE(NPO+GD, alpha=auto)", "--budget", "rows=500"]


def budget_without_value(place: Path) -> list[str]:
    return ["run.yaml", "--budget", "0.98"]


CASES: list[tuple[Change, str]] = [
    (method("RMU(layer=1)+ACT(layer=1)"), "the model has 2 blocks, so a layer is 0 to 0"),
    (method("RMU(layer=0)+ACT(layer=3)"), "look at blocks 0 and 3; both must name the same layer"),
    (method("RMU(layer=-1)"), "layer must be a whole number at least 0"),
    (method("EGU(NPO+GD, embed_layer=7)"), "embed_layer=7 is out of range: with 2 blocks"),
    (method("ULD(layers=5)"), "layers=5 is out of range: the model has 2 blocks"),
    (method("PDU+GD"), "needs the level of the retain term that is to be kept"),
    (method("NPO+GD(dual_step=2)"), "dual_step without limit"),
    (method("GA+KL(limit=1, dual_every=epoch)"), "which is done for GD only"),
    (method("WHP(NPO+GD)"), "goes around a method that learns it: WHP(REINFORCE), not NPO"),
    (method("EGU(EMPIRICAL(GA))"), "EMPIRICAL and EGU: each weighs samples"),
    (method("EGU(CONFIDENCE(GA), level=token)"), "level=token already weighs tokens"),
    (method("EGU(GA, level=token, scope=dataset)"), "level=token needs scope=step or micro_batch"),
    (method("CONFIDENCE(ME+GD)"), "write ME(positions=labels) to weigh the tokens of the answers"),
    (method("SAM(SAM(GA))"), "SAM stands twice"),
    (method("GA(average=broadcast)"), "is how open-unlearning divides in RMU"),
    (method("SAM(GA, rho=0)"), "rho must be a number above 0"),
    (method("UIPE(GA, alpha=auto)", "data.retain=null"), "budget is measured on retain rows"),
    (method("AltPO+GD"), "Make them with: expunge alternates"),
    (method("GA", "training.stop_at=proxy"), "training.stop_at=proxy needs proxy answers"),
    (method("GA", "training.stop_at=sometimes"), "sometimes"),
    (plain_text_for_ap, "plain text has no questions"),
    (budget_of_more_rows, "500 rows are to be set aside and the retain set has"),
    (budget_without_value, "write --budget utility=0.98"),
    (missing_config, "nowhere.yaml: there is no such file"),
    (missing_file, "forgett.jsonl"),
    (wrong_column, "needs the columns question and answer"),
    (empty_forget_set, "forget.jsonl: the file is empty"),
    (overlap, "8 of 8 rows to forget"),
    (unknown_method, "unknown forget loss NPOO. Did you mean NPO?"),
    (typo_in_key, "training.learning_rat  unknown key. Did you mean learning_rate?"),
    (key_of_another_tool, "unknown key. It is called training.micro_batch_size"),
    (key_in_the_wrong_place, "unknown key here. Did you mean training.learning_rate?"),
    (negative_learning_rate, "must be above 0, came -1e-05 (from the command line)"),
    (no_tokenizer, "no tokenizer"),
    (no_such_model, "no such folder"),
    (truncated_line, "forget.jsonl line 9"),
    (data_not_utf8, "forget.jsonl line 9"),
    (config_not_utf8, "run.yaml, line 7: byte 0xe9 is not UTF-8"),
    (config_not_yaml, "run.yaml: line"),
    (config_no_mapping, "must hold keys and values, but came ['NPO'] (a list)"),
    (duplicate_key, "line 6, column 1: the key method is given twice"),
    (wrong_type, "must be a whole number, came 'many' (text)"),
    (text_for_a_number, "must be a whole number, came '4' (text)"),
    (answer_too_long, "1 of 2 rows are longer than max_length=512 tokens"),
    (longer_than_the_context, "4096 is more than the context of the model, 512 tokens"),
    (uneven_batch, "5 is no multiple of micro_batch_size 2; take 4 or 6, or micro_batch_size 1"),
    (two_warmups, "give one of warmup_steps and warmup_ratio, not 2"),
    (method_syntax, "EGUP(NPO+GD, k=1\n                  ^"),
    (alpha_no_number, "'strong' is not allowed; alpha must be a number"),
    (unknown_option_in_mapping, "method.forget.betta  NPO has no option betta. Did you mean beta?"),
    (egup_without_proxies, "Make them with: expunge proxies"),
    (proxies_of_other_data, "is no question of the forget set"),
    (two_writers, "came model (./model) and endpoint (http://localhost:8000/v1): one of them"),
    (two_writers_of_alternates, "alternates  came model (./model) and endpoint"),
    (endpoint_without_model, "proxies.endpoint.model  is required. Name of the model there"),
    (endpoint_without_scheme, "is no http or https url; write it as http://localhost:8000/v1"),
    (endpoint_of_one_request, "is the address of one request; leave out /chat/completions"),
    (key_instead_of_its_variable, "must be the name of an environment variable"),
    (key_in_the_url, "has a user name or password in it"),
    (no_retain_set, "NPO+GD needs a retain set"),
    (useless_weights, "every weight of EGU(NPO+GD, scope=micro_batch) is 1"),
    (unknown_benchmark, "unknown benchmark 'toffu'. Did you mean tofu?"),
    (unknown_preset, "tofu has no preset 'tofu_klassic'. Did you mean tofu_classic?"),
    (unknown_probe, "custom has no probe 'retains'. Did you mean retain?"),
    (impossible_role, "this run has no base model, only: target, unlearned"),
    (no_retain_results, "other: holds no stored evaluation of a retain model"),
    (missing_tracker, "pip install 'expunge[mlflow]'"),
    (lora_and_pattern, "training.trainable  cannot choose parameters when lora trains adapters"),
    (bad_pattern, "'(mlp' is no regular expression"),
    (output_is_a_file, "taken is a file; a run needs a folder"),
    (empty_rejections, "no.txt"),
    (two_files, "one configuration file at most"),
    (unknown_recipe, "no file and no recipe is called 'tofu/npo_phi'"),
    (problem_of_a_recipe, "Error: custom has "),
    (override_of_a_plain_value, "name is 'test' (text) and has no keys"),
]


@pytest.mark.parametrize(("change", "sentence"), CASES, ids=[c[0].__name__ for c in CASES])
def test_bad_input(place: Path, expunge_cli: Any, change: Change, sentence: str) -> None:
    outcome = expunge_cli("check", *change(place))

    assert outcome.code == 2
    assert sentence in outcome.err
    assert outcome.err.startswith("Error: ")
    assert "Traceback" not in outcome.out + outcome.err
    assert "sk-secret" not in outcome.out + outcome.err


def test_the_unchanged_place_is_fine(place: Path, expunge_cli: Any) -> None:
    outcome = expunge_cli("check", "run.yaml")

    assert outcome.err == ""
    assert outcome.code == 0


@pytest.mark.usefixtures("pipelines")
@pytest.mark.parametrize("verb", ["unlearn", "check"])
def test_every_problem_comes_at_once(place: Path, expunge_cli: Any, verb: str) -> None:
    wrong_column(place)

    outcome = expunge_cli(
        verb, "run.yaml", "--method", "NOPE", "training.effective_batch_size=5", "--model", "./no"
    )

    assert outcome.code == 2
    assert "run.yaml has 3 problems:" in outcome.err
    for key in ("method.name", "data.forget", "model.path"):
        assert f"  {key} " in outcome.err


def test_unlearn_stops_before_the_pipeline(place: Path, expunge_cli: Any, pipelines: Any) -> None:
    assert expunge_cli("unlearn", *unknown_method(place)).code == 2
    assert pipelines == []


def test_no_space_left(place: Path, expunge_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    outcome = expunge_cli("init", "new.yaml")

    assert outcome.code == 1
    assert "no space left on the device while writing new.yaml" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (place / "new.yaml").exists()


def test_too_little_space_is_seen_before(
    place: Path, expunge_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    outcome = expunge_cli("check", "run.yaml")

    assert outcome.code == 2
    assert "free some space" in outcome.err


@pytest.mark.parametrize("verb", ["report", "score"])
def test_a_folder_that_is_no_run(place: Path, expunge_cli: Any, verb: str) -> None:
    (place / "empty").mkdir()

    assert "is no run folder" in expunge_cli(verb, "empty").err
    outcome = expunge_cli(verb, "nowhere")

    assert outcome.code == 2
    assert "nowhere: there is no such run folder" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["unlern"], "No such command"),
        (["unlearn", "--methd", "NPO"], "No such option"),
        (["unlearn", "--seed", "x"], "Invalid value for '--seed'"),
        (["finetune", "--role", "both of them"], "'both of them' is not one of"),
        (["list", "loses"], "there is no list of 'loses'. Did you mean losses?"),
        (["show", "NPPO"], "nothing is called 'NPPO'. Did you mean NPO?"),
        (["show", "NPO+"], "expected the name of a method, found the end"),
        (["verify", "golden", "nowhere"], "nowhere: no such file or folder"),
        (["evaluate", "./model"], "data  is required"),
        (["init", "a.yaml", "b.yaml"], "give one recipe and one file"),
        (["demo", "my.yaml"], "demo has its own recipe"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_command_line(
    place: Path, expunge_cli: Any, arguments: list[str], sentence: str
) -> None:
    outcome = expunge_cli(*arguments)

    assert outcome.code == 2
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
