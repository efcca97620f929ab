"""The verb plan, and the memory line of check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.run.check import check
from expunge.run.planning import devices
from expunge.run.resolve import load_config

GPUS = ("--gpus", "1,8", "--tokens", "80", "--labels", "40")


def test_the_table_has_a_line_per_size_and_number(place: Path, expunge_cli: Any) -> None:
    found = expunge_cli("plan", "--sizes", "1B,70B", *GPUS)

    assert found.code == 0, found.err
    lines = [line.split() for line in found.out.splitlines()]
    rows = [line[:3] for line in lines if line and line[0].startswith("Llama")]
    assert rows == [
        ["Llama-3.2-1B", "1", "yes"],
        ["Llama-3.2-1B", "8", "yes"],
        ["Llama-3.1-70B", "1", "no"],
        ["Llama-3.1-70B", "8", "no"],
    ]
    assert "NPO+GD on H100 80GB: batch 32, mixed" in found.out
    assert "35% of the peak, assumed" in found.out
    assert "The trainer itself runs unsharded" in found.out


def test_a_recipe_is_counted_with_its_tokenizer(place: Path, expunge_cli: Any, tiny: Path) -> None:
    found = expunge_cli("plan", "run.yaml", "--gpus", "1", "--json")

    assert found.code == 0, found.err
    whole = json.loads(found.out)
    (plan,) = whole["plans"]
    assert plan["model"] == tiny.name
    assert plan["steps"] == 10  # 8 rows in batches of 4, five epochs
    assert whole["assumptions"][0].startswith("Lengths: counted with the tokenizer")
    forget, retain = (
        expunge_cli("check", "run.yaml").out.partition(f"{name} tokens")[2].split()[2]
        for name in ("forget", "retain")
    )
    assert 4 * 2 < plan["tokens_per_step"] <= 4 * (int(forget) + int(retain))


def test_overrides_reach_the_plan(place: Path, expunge_cli: Any) -> None:
    def planned(*words: str) -> dict[str, Any]:
        found = expunge_cli("plan", "8B", "--gpus", "1", "--json", "--tokens", "80", *words)
        assert found.code == 0, found.err
        (plan,) = json.loads(found.out)["plans"]
        return dict(plan)

    plain = planned()
    lora = planned("lora.r=8", "model.dtype=bfloat16")
    assert not plain["fits"]
    assert lora["fits"]
    assert lora["num_trained"] < plain["num_trained"] / 100
    assert planned("--optimizer", "adamw_8bit")["memory"]["optimizer"] < (
        plain["memory"]["optimizer"] / 3
    )
    more = planned("--method", "EGUP(NPO+GD)")
    assert more["flops_per_step"] > 1.1 * plain["flops_per_step"]


def test_this_processor_is_measured(
    place: Path, expunge_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = devices.Probe(fp32=1e11, bf16=2e11, bandwidth=1e10)
    monkeypatch.setattr(devices, "gemm_probe", lambda: probe)

    found = expunge_cli("plan", "run.yaml", "--device", "cpu")

    assert found.code == 0, found.err
    assert "100 GFLOP/s in float32, 200 in bfloat16" in found.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "two"], "'two' is no whole number"),
        (["--gpus", "128"], "128 is out of range; plans go from 1 to 64"),
        (["--gpus", ","], "--gpus names nothing"),
        (["--sizes", "9B"], "9B: no such size, model folder or config file"),
        (["--device", "h1000"], "--device h1000: "),
        (["--sharding", "half"], "--sharding half: "),
        (["--optimizer", "lion"], "--optimizer lion: "),
        (["--labels", "4"], "--labels needs --tokens"),
        (["--tokens", "80", "--labels", "90"], "a row of 80 tokens has 1 to 80"),
        (["--tokens", "0"], "a row has 2 to 1000000 tokens"),
        (["nothing"], "nothing is no configuration file, recipe"),
        (["1B", "8B"], "one configuration or model at most, came 1B and 8B"),
        (["1B", "training.micro=1"], "unknown key"),
        (["run.yaml", "model.path=some/hub-name", "--tokens", "80"], "with --sizes"),
    ],
)
def test_bad_input(place: Path, expunge_cli: Any, words: list[str], message: str) -> None:
    found = expunge_cli("plan", *words)

    assert found.code == 2
    assert message in found.err
    assert "Traceback" not in found.err


def test_check_estimates_memory(place: Path) -> None:
    def line(*overrides: str) -> str:
        return dict(check(load_config("run.yaml", *overrides)).facts)["memory"]

    text = line()
    assert text.startswith("about 0.")
    assert "GiB of host memory at most" in text
    assert "libraries 0." in text
    assert "not estimated" in line("model.path=builtin:smollm2-135m-instruct")


def test_check_warns_where_memory_is_short(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.run import environment

    monkeypatch.setattr(environment, "memory_bytes", lambda: 2**20)

    warnings = check(load_config("run.yaml")).warnings

    assert any("0.0 GiB of host memory; lower training.micro_batch_size" in w for w in warnings)
