"""Precedence, origins, YAML rules and messages of configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.errors import InputError
from expunge.run.config import RunConfig, json_schema, keys
from expunge.run.render import to_yaml, yaml_value
from expunge.run.resolve import Resolved, load_config, parse_override, resolve
from expunge.run.yaml_text import parse_yaml

BASE = "data: {forget: forget.jsonl}\n"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_text(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def problems(*args: Any, **kwargs: Any) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        resolve(*args, **kwargs)
    return {problem.where: problem.message for problem in caught.value.problems}


# Precedence and origins ---------------------------------------------------------------------------


def test_flag_over_override_over_file_over_default(write: Any) -> None:
    file = write(BASE + "seed: 1\nname: a\ntraining: {learning_rate: 1e-4, weight_decay: 0.1}\n")

    found = resolve(file, overrides=["seed=2", "training.weight_decay=0.2"], flags={"seed": 3})

    assert found.config.seed == 3
    assert found.config.training.weight_decay == 0.2
    assert found.config.training.learning_rate == 1e-4
    assert found.config.training.max_grad_norm == 1.0
    origins = {path: origin for path, _, origin in found.values()}
    assert origins["seed"] == "flag"
    assert origins["training.weight_decay"] == "override"
    assert origins["training.learning_rate"] == "file"
    assert origins["training.max_grad_norm"] == "default"
    assert origins["data.forget.source"] == "file"
    assert origins["data.forget.split"] == "default"


def test_the_origin_of_every_value_is_told() -> None:
    found = resolve(flags={"data.forget": "x"})

    paths = {path for path, _, _ in found.values()}
    null = {
        *("data.retain", "method", "lora", "finetune", "proxies.endpoint", "alternates.endpoint"),
        *("evaluation.retain", "scenario"),
    }
    below_null = tuple(f"{path}." for path in null)
    expected = {
        key.path for key in keys() if key.section is None and not key.path.startswith(below_null)
    }
    assert paths == expected | null
    assert isinstance(found, Resolved)


def test_a_method_flag_replaces_the_method_but_keeps_overrides_of_it(write: Any) -> None:
    file = write(BASE + "method: {name: ME+GD, forget: {direction: uniform_to_model}}\n")

    found = resolve(file, overrides=["method.forget.beta=0.2"], flags={"method": "NPO"})

    assert found.config.method is not None
    assert found.config.method.name == "NPO"
    assert found.config.method.forget == {"beta": 0.2}
    assert found.origin("method.forget.beta") == "override"


def test_a_data_flag_replaces_columns_and_rows_of_the_file(write: Any) -> None:
    file = write("data: {forget: {source: a.jsonl, rows: [0, 5], columns: {question: q}}}\n")

    source = resolve(file, flags={"data.forget": "b.jsonl"}).config.data.forget

    assert (source.source, source.rows, source.columns.question) == ("b.jsonl", None, "question")


def test_overrides_reach_into_shorthands_and_null_sections(write: Any) -> None:
    file = write(BASE + "lora: null\n")

    config = resolve(file, overrides=["data.forget.rows=[2, 4]", "lora.r=4"]).config

    assert (config.data.forget.source, config.data.forget.rows) == ("forget.jsonl", (2, 4))
    assert config.lora is not None
    assert config.lora.r == 4


def test_an_override_of_one_alias_leaves_the_other(write: Any) -> None:
    file = write(BASE + "training: &t {learning_rate: 1e-4}\nfinetune: {training: *t}\n")

    config = load_config(file, "training.learning_rate=1")

    assert config.training.learning_rate == 1.0
    assert config.finetune is not None
    assert config.finetune.training.learning_rate == 1e-4


def test_run_folder_follows_the_name(write: Any) -> None:
    assert load_config(write(BASE + "name: a\n")).output_dir == "runs/a"
    assert load_config(write(BASE + "name: a\n"), "name=b").output_dir == "runs/b"
    assert load_config(write(BASE + "name: a\noutput_dir: x\n")).output_dir == "x"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.learning_rate=1e-5", 1e-5),
        ("seed=010", 10),
        ("lora=null", None),
        ("lora=", None),
        ("template.date_string=2025-04-10", "2025-04-10"),
        ("template.system_prompt=You: are #1, 'really'", "You: are #1, 'really'"),
        ("template.system_prompt='5'", "5"),
        ("method=EGUP(NPO+GD, k=1)", "EGUP(NPO+GD, k=1)"),
        ("training.trainable=*.mlp", "*.mlp"),
        ("evaluation.roles=[target, retain]", ["target", "retain"]),
        ("evaluation.rows={forget: 3}", {"forget": 3}),
        ("training.gradient_checkpointing=true", True),
    ],
)
def test_override_values_are_yaml_or_plain_text(text: str, value: Any) -> None:
    assert parse_override(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize("text", ["seed", "=3", "a b=3", "a..b=3", ".a=3"])
def test_what_is_no_override(text: str) -> None:
    with pytest.raises(InputError, match="write key=value"):
        parse_override(text)


# YAML ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3.", -3.0),
        ("+7", 7),
        ("010", 10),
        ("1:30", "1:30"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("2025-04-10", "2025-04-10"),
        ("1_000", "1_000"),
        ("e5", "e5"),
        (".", "."),
    ],
)
def test_scalars_read_as_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(f"a: {text}")["a"]

    assert read == value
    assert type(read) is type(value)


def test_yaml_cannot_run_code() -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.system ['true']")


def test_merge_keys_are_no_duplicates() -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, x: 2}\n"

    assert parse_yaml(text)["b"] == {"x": 2}


def test_an_alias_inside_its_anchor(write: Any) -> None:
    with pytest.raises(InputError, match="an alias"):
        resolve(write("a: &a\n  b: *a\n"))


@settings(max_examples=30, deadline=None)
@given(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            ["1e-5", "no", "null", "2025-04-10", "1:30", "", " a", "a: b", "#x", "[", "'"]
        ),
        st.integers(-(10**9), 10**9),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.none(),
    )
)
def test_every_value_is_read_back(value: Any) -> None:
    assert parse_yaml(f"a: {yaml_value(value)}")["a"] == value
    assert parse_yaml(f"a: {yaml_value([value, {'k': value}])}")["a"] == [value, {"k": value}]


@pytest.mark.parametrize("comments", [True, False])
def test_a_written_configuration_is_read_back(tmp_path: Path, comments: bool) -> None:
    config = resolve(
        overrides=[
            "lora={}",
            "finetune={}",
            "method.wrapper={k: 1}",
            "evaluation.rows={forget: null}",
        ],
        flags={"data.forget": "a.jsonl", "method": "EGUP(NPO+GD)", "name": "1e5"},
    ).config
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(config, comments=comments, header="Title\n\nmore"), encoding="utf-8")

    assert load_config(path) == config
    assert RunConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))) == config


# Messages -----------------------------------------------------------------------------------------


def test_every_problem_is_told_with_its_path(write: Any) -> None:
    found = problems(
        write(
            """
name: 2024
seed: 1.0
data: {forget: {sourc: a}, retain: 5, on_too_long: trunc, max_length: true}
training: {learning_rate: .inf, num_train_epochs: "5", warmup_ratio: 2}
trainings: {}
lora: {dropout: 1}
evaluation: {rows: {forget: 0}, roles: [unlearn]}
""",
        )
    )

    assert found == {
        "name": "must be text, came 2024; put it in quotes",
        "seed": "must be a whole number, came 1.0; write 1",
        "data.forget.source": found["data.forget.source"],
        "data.forget.sourc": "unknown key. Did you mean source? "
        "Possible: source, split, config, columns, rows",
        "data.retain": "must be a mapping of keys to values, came 5",
        "data.on_too_long": "came 'trunc' (text). Did you mean truncate? "
        "Possible: error, truncate, drop",
        "data.max_length": "must be a whole number, came true",
        "training.learning_rate": "must be a finite number, came inf",
        "training.num_train_epochs": "must be a number, came '5' (text)",
        "training.warmup_ratio": "must be 1 or less, came 2",
        "trainings": found["trainings"],
        "lora.dropout": "must be below 1, came 1",
        "evaluation.rows.forget": "must be 1 or more, came 0",
        "evaluation.roles.0": found["evaluation.roles.0"],
    }
    assert found["data.forget.source"].startswith("is required. tofu:SPLIT")
    assert found["trainings"].startswith("unknown key. Did you mean training?")


@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        (["training.lr=1"], "training.lr", "unknown key. It is called training.learning_rate"),
        (["max_length=9"], "max_length", "unknown key here. Did you mean data.max_length?"),
        (["data.forget.rows=[3, 3]"], "data.forget.rows", "[3, 3] holds no row"),
        (["data.forget.rows=[1, 2, 3]"], "data.forget.rows", "a list of 2 values"),
        (["data.forget.rows=[1]"], "data.forget.rows.1", "is required"),
        (["model=3"], "model", "must be a mapping of keys to values, came 3"),
        (["model.path="], "model.path", "must be text, came null"),
        (["data.forget="], "data.forget", "must be a mapping"),
        (["training.trainable=(("], "training.trainable", "is no regular expression"),
    ],
)
def test_messages_of_overrides(overrides: list[str], where: str, message: str) -> None:
    found = problems(overrides=["data.forget=x", *overrides])

    assert message in found[where]
    assert found[where].endswith("(from the command line)") or where == "data.forget.rows.1"


def test_schema_closes_every_section_and_takes_shorthands() -> None:
    schema = json_schema()

    sections = [schema, *schema["$defs"].values()]
    objects = [part for section in sections for part in section.get("anyOf", [section])]
    assert all(part["additionalProperties"] is False for part in objects if "properties" in part)
    assert {"type": "string"} in schema["$defs"]["MethodConfig"]["anyOf"]
    described = [
        field
        for part in objects
        for field in part.get("properties", {}).values()
        if "$ref" not in field
    ]
    assert all(field.get("description") for field in described)


def test_configurations_do_not_change() -> None:
    config = resolve(flags={"data.forget": "x"}).config

    with pytest.raises(ValueError, match="frozen"):
        config.training.learning_rate = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flags", "overrides", "roles", "benchmark"),
    [
        ({"data.forget": "tofu:forget10"}, [], ("target", "unlearned"), "tofu"),
        (
            {"data.forget": "a"},
            ["finetune={}"],
            ("base", "target", "unlearned", "retain"),
            "custom",
        ),
        (
            {"data.forget": "a"},
            ["evaluation.retain_run=runs/r", "evaluation.benchmark=tofu"],
            ("target", "unlearned", "retain"),
            "tofu",
        ),
        ({"data.forget": "a"}, ["evaluation=null"], ("target", "unlearned"), None),
    ],
)
def test_roles_and_benchmark_follow_from_the_run(
    flags: dict[str, Any], overrides: list[str], roles: tuple[str, ...], benchmark: str | None
) -> None:
    config = resolve(flags=flags, overrides=overrides).config

    assert config.roles() == roles
    assert config.benchmark() == benchmark
