"""What each verb hands to the pipelines, prints and writes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import expunge.run
from expunge.core.errors import RunError
from expunge.run.config import RunConfig
from expunge.run.resolve import load_config


def only_call(pipelines: list[Any], name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    assert [call[0] for call in pipelines] == [name]
    return pipelines[0][1], pipelines[0][2]


def test_unlearn_without_any_file(
    place: Path, tiny: Path, expunge_cli: Any, pipelines: Any
) -> None:
    outcome = expunge_cli(
        "unlearn",
        *("--model", str(tiny), "--forget", "forget.jsonl", "--retain", "retain.jsonl"),
        *("--method", "GA+GD", "--output", "runs/x", "--seed", "7"),
        *("training.learning_rate=1e-5", "method.retain.weight=2"),
    )

    assert (outcome.code, outcome.err) == (0, "")
    (config, _), _ = only_call(pipelines, "unlearn")
    assert isinstance(config, RunConfig)
    assert config.model.path == str(tiny)
    assert config.data.forget.source == "forget.jsonl"
    assert config.data.retain is not None
    assert config.method is not None
    assert (config.method.name, config.method.retain) == ("GA+GD", {"weight": 2})
    assert (config.name, config.output_dir, config.seed) == ("x", "runs/x", 7)
    assert config.training.learning_rate == 1e-5


def test_flags_win_over_overrides_and_the_file(
    place: Path, expunge_cli: Any, pipelines: Any
) -> None:
    expunge_cli("unlearn", "run.yaml", "seed=3", "training.weight_decay=0.5", "--seed", "4")

    (config, _), _ = only_call(pipelines, "unlearn")
    assert config.seed == 4
    assert config.training.weight_decay == 0.5
    assert config.training.learning_rate == 1e-3


def test_warnings_are_shown(place: Path, expunge_cli: Any, pipelines: Any) -> None:
    outcome = expunge_cli("unlearn", "run.yaml")

    assert "Warning: no retain model" in outcome.out
    assert outcome.code == 0


@pytest.mark.parametrize(
    ("role", "expected"),
    [([], ["target", "retain"]), (["--role", "retain"], ["retain"])],
)
def test_finetune_makes_the_roles(
    place: Path, expunge_cli: Any, pipelines: Any, role: list[str], expected: list[str]
) -> None:
    outcome = expunge_cli("finetune", "run.yaml", "finetune={}", *role)

    assert outcome.code == 0, outcome.err
    assert [call[1][1] for call in pipelines] == expected


def test_finetune_needs_its_section(place: Path, expunge_cli: Any, pipelines: Any) -> None:
    outcome = expunge_cli("finetune", "run.yaml", "data.retain=null")

    assert outcome.code == 2
    assert "finetune     is required" in outcome.err
    assert "data.retain  is required" in outcome.err


def test_proxies_need_no_proxies(place: Path, expunge_cli: Any, pipelines: Any) -> None:
    outcome = expunge_cli("proxies", "run.yaml", "--method", "EGUP(NPO+GD)")

    assert outcome.code == 0, outcome.err
    only_call(pipelines, "proxies")


ENDPOINT = ("proxies.endpoint.url=http://localhost:8000/v1/", "proxies.endpoint.model=m")


def test_proxies_from_an_endpoint(place: Path, expunge_cli: Any, pipelines: Any) -> None:
    outcome = expunge_cli("proxies", "run.yaml", *ENDPOINT, "--force")

    assert outcome.code == 0, outcome.err
    assert "knows the true answers" not in outcome.out
    (config, _), options = only_call(pipelines, "proxies")
    assert config.proxies.endpoint.url == "http://localhost:8000/v1"
    assert options == {"force": True}


def test_the_target_model_is_no_good_writer_of_proxies(
    place: Path, expunge_cli: Any, pipelines: Any
) -> None:
    assert "knows the true answers" in expunge_cli("proxies", "run.yaml").out
    assert "knows the" not in expunge_cli("proxies", "run.yaml", "finetune={}").out


def test_a_key_without_encryption_is_warned_about(
    place: Path, expunge_cli: Any, pipelines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    url = "proxies.endpoint.url=http://models.example/v1"

    warned = expunge_cli("proxies", "run.yaml", *ENDPOINT, url)
    silent = expunge_cli("proxies", "run.yaml", *ENDPOINT, url, "proxies.endpoint.api_key_env=null")

    assert "the key in OPENAI_API_KEY goes to http://models.example/v1" in warned.out
    assert "sk-secret" not in warned.out + warned.err
    assert "without encryption" not in silent.out


def test_alternates(place: Path, expunge_cli: Any, pipelines: Any) -> None:
    outcome = expunge_cli("alternates", "run.yaml", "data.retain=null", "alternates.per_question=2")

    assert outcome.code == 0, outcome.err
    (config, _), options = only_call(pipelines, "alternates")
    assert config.alternates.per_question == 2
    assert options == {"force": False}


def test_alternates_of_a_model_to_be_fine_tuned_need_a_retain_set(
    place: Path, expunge_cli: Any, pipelines: Any
) -> None:
    outcome = expunge_cli("alternates", "run.yaml", "data.retain=null", "finetune={}")

    assert outcome.code == 2
    assert "data.retain  is required: the target model" in outcome.err


def test_proxies_need_a_retain_set(place: Path, expunge_cli: Any, pipelines: Any) -> None:
    outcome = expunge_cli("proxies", "run.yaml", "data.retain=null")

    assert outcome.code == 2
    assert "data.retain  is required" in outcome.err
    assert pipelines == []


def test_evaluate_a_bare_model(place: Path, tiny: Path, expunge_cli: Any, pipelines: Any) -> None:
    outcome = expunge_cli(
        "evaluate", str(tiny), "--forget", "forget.jsonl", "--role", "retain", "--output", "runs/r"
    )

    assert outcome.code == 0, outcome.err
    (config,), named = only_call(pipelines, "evaluate")
    assert config.output_dir == "runs/r"
    assert (named["model"], named["role"]) == (str(tiny), "retain")


def test_evaluate_a_run_with_its_own_settings(
    place: Path, tiny: Path, expunge_cli: Any, pipelines: Any
) -> None:
    shutil.copytree(tiny, place / "runs/x/model")
    (place / "run.yaml").rename(place / "runs/x/config.yaml")

    outcome = expunge_cli("evaluate", "runs/x", "evaluation.max_new_tokens=5")

    assert outcome.code == 0, outcome.err
    (config,), named = only_call(pipelines, "evaluate")
    assert (config.evaluation.max_new_tokens, config.output_dir) == (5, "runs/x")
    assert (named["model"], named["role"]) == ("runs/x/model", "unlearned")
    assert expunge_cli("evaluate", "runs/x", "--role", "retain").code == 2


def test_score_and_report_get_run_folders(place: Path, expunge_cli: Any, pipelines: Any) -> None:
    for name in ("a", "b"):
        (place / name / "evaluation").mkdir(parents=True)

    assert expunge_cli("score", "a", "--preset", "tofu_ou").code == 0
    assert expunge_cli("report", "a", "b", "--output", "c").code == 0

    (_, scored, options), (_, (runs,), named) = pipelines
    assert (scored, options["preset"]) == ((Path("a"),), "tofu_ou")
    assert (runs, named["output"]) == ([Path("a"), Path("b")], Path("c"))


def test_demo_takes_overrides(place: Path, expunge_cli: Any, pipelines: Any) -> None:
    outcome = expunge_cli("demo", "training.learning_rate=0.5", "--output", "runs/mine")

    assert outcome.code == 0, outcome.err
    _, named = only_call(pipelines, "demo")
    assert named["config"].training.learning_rate == 0.5
    assert named["config"].output_dir == "runs/mine"


def test_check_prints_values_with_their_origin(place: Path, expunge_cli: Any) -> None:
    out = expunge_cli("check", "run.yaml", "training.weight_decay=0.5", "--seed", "3").out
    lines = [line.split() for line in out.splitlines()]

    assert ["training.learning_rate", "0.001", "file"] in lines
    assert ["training.weight_decay", "0.5", "override"] in lines
    assert ["seed", "3", "flag"] in lines
    assert ["training.max_grad_norm", "1.0", "default"] in lines
    assert (
        "8 samples / batch 4 (micro-batch 2 x 2 accumulated) = 2 steps per epoch; 10 steps" in out
    )
    assert out.rstrip().endswith("run.yaml has no problems.")


def test_check_counts_processes(
    place: Path, expunge_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert "(micro-batch 2 x 2 processes) = 2 steps" in expunge_cli("check", "run.yaml").out


def test_init_writes_a_complete_file_that_passes(place: Path, tiny: Path, expunge_cli: Any) -> None:
    outcome = expunge_cli(
        *("init", "my.yaml", "--model", str(tiny), "--method", "GA+GD"),
        *("training.effective_batch_size=4", "training.micro_batch_size=4", "--name", "mine"),
    )

    assert outcome.code == 0, outcome.err
    text = (place / "my.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Unlearn your own data.\n")
    assert "  # Peak learning rate of AdamW." in text
    assert set(yaml.safe_load(text)["training"]) == set(
        load_config("my.yaml").training.model_dump()
    )
    assert load_config("my.yaml").method.name == "GA+GD"  # type: ignore[union-attr]
    assert expunge_cli("check", "my.yaml").code == 0


def test_init_never_overwrites_unless_told(place: Path, expunge_cli: Any) -> None:
    before = (place / "run.yaml").read_text(encoding="utf-8")

    outcome = expunge_cli("init")

    assert outcome.code == 2
    assert "run.yaml exists" in outcome.err
    assert (place / "run.yaml").read_text(encoding="utf-8") == before
    assert expunge_cli("init", "--force").code == 0
    assert (place / "run.yaml").read_text(encoding="utf-8") != before


def test_init_from_a_recipe(place: Path, expunge_cli: Any) -> None:
    assert expunge_cli("init", "tofu/npo_gd_phi15", "my.yaml").code == 0

    config = load_config("my.yaml")
    assert config.model.path == "microsoft/phi-1_5"
    assert config.finetune is not None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("methods", "EGUP(NPO+GD)"),
        ("losses", "NPO"),
        ("retain", "GD"),
        ("wrappers", "EGUP"),
        ("metrics", "probability"),
        ("benchmarks", "tofu"),
        ("recipes", "tofu/npo_gd_phi15"),
        ("templates", "llama2"),
        ("splits", "forget10"),
    ],
)
def test_list_and_show_know_each_other(expunge_cli: Any, kind: str, name: str) -> None:
    listed = expunge_cli("list", kind)
    shown = expunge_cli("show", name)

    assert name in [line.partition("  ")[0] for line in listed.out.splitlines()]
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.strip()


def test_list_without_a_kind_lists_all(expunge_cli: Any) -> None:
    out = expunge_cli("list").out

    assert all(f"\n{kind}: " in out for kind in ("methods", "benchmarks", "splits"))


def test_show_gives_defaults_meaning_needs_and_paper(expunge_cli: Any) -> None:
    out = expunge_cli("show", "npo").out
    assert "  beta = 0.1\n    Inverse temperature" in out
    assert "arXiv:2404.05868" in out
    assert "log-probabilities of the reference model" in out

    out = expunge_cli("show", "UIPE(EGUP(NPO(beta=0.2)+GD, k=2), alpha=0.3)").out
    assert "forget/npo: weight 1, beta 0.2" in out
    assert "k 2, level sample, direction entangled_less" in " ".join(out.split())
    assert "proxy answers (expunge proxies)" in out
    assert "UIPE: extrapolation of the parameter update\n  alpha 0.3" in out


def test_show_a_configuration_key(expunge_cli: Any) -> None:
    out = expunge_cli("show", "training.warmup_epochs").out

    assert out.startswith("training.warmup_epochs: null  (a number from 0, or null)\n")
    assert "training.learning_rate: 1e-05" in expunge_cli("show", "training").out


def test_show_schema_is_json(expunge_cli: Any) -> None:
    schema = yaml.safe_load(expunge_cli("show", "schema").out)

    assert schema["additionalProperties"] is False
    assert {"type": "string"} in schema["$defs"]["DataSource"]["anyOf"]


def test_env_names_versions_and_no_host(expunge_cli: Any) -> None:
    import platform

    out = expunge_cli("env").out

    assert "torch: 2" in out
    assert f"python: {platform.python_version()}" in out
    assert "cores for this process" in out


def test_verify_prints_a_line_per_case(expunge_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.run import verify
    from expunge.run.verify import CaseResult

    cases = [CaseResult(file="a.json", case="one", outcome="passed")]
    monkeypatch.setattr(verify, "verify", lambda paths: iter(cases))
    outcome = expunge_cli("verify", "golden", "golden")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "1 passed"

    cases.append(CaseResult(file="a.json", case="two", outcome="failed", detail="off by 2"))
    outcome = expunge_cli("verify", "golden", "golden")
    assert outcome.code == 1
    assert "a.json two: off by 2" in outcome.out
    assert outcome.out.splitlines()[-1] == "1 passed, 1 failed"


class Raises:
    """Stands in for a pipeline that fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def unlearn(self, *_: object) -> None:
        raise self.error


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(error: BaseException) -> None:
        fake = Raises(error)
        monkeypatch.setitem(sys.modules, "expunge.run.pipelines", fake)
        monkeypatch.setattr(expunge.run, "pipelines", fake, raising=False)

    return install


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (RunError("the loss is not a number"), 1, "Error: the loss is not a number"),
        (KeyboardInterrupt(), 130, "Error: interrupted"),
        (OSError(28, "No space left on device", "runs/x"), 1, "runs/x: No space left on device"),
        (MemoryError(), 1, "Error: out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "training.micro_batch_size"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_failures_of_a_run(
    place: Path, expunge_cli: Any, failing: Any, error: BaseException, code: int, sentence: str
) -> None:
    failing(error)

    outcome = expunge_cli("unlearn", "run.yaml")

    assert outcome.code == code
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err


def test_a_bug_keeps_its_traceback(place: Path, expunge_cli: Any, failing: Any) -> None:
    failing(RuntimeError("shapes do not match"))

    with pytest.raises(RuntimeError, match="shapes"):
        expunge_cli("unlearn", "run.yaml")


def test_debug_shows_the_traceback(
    place: Path, expunge_cli: Any, failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(RunError("the loss is not a number"))
    monkeypatch.setenv("EXPUNGE_DEBUG", "1")

    outcome = expunge_cli("unlearn", "run.yaml")

    assert "Traceback" in outcome.err
    assert outcome.err.rstrip().endswith("Error: the loss is not a number")


def test_other_processes_are_quiet(
    place: Path, expunge_cli: Any, pipelines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")

    outcome = expunge_cli("unlearn", "run.yaml")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")

    outcome = expunge_cli("unlearn", "run.yaml", "seed=-1")
    assert outcome.code == 2
    assert outcome.err == "Error in process 1: run.yaml has 1 problem:\n"
