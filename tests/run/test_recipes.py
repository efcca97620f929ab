"""Every recipe is complete, valid, and a method that exists."""

from __future__ import annotations

import pytest
import yaml

from expunge.core.errors import InputError
from expunge.run.arithmetic import plan_batches
from expunge.run.check import check
from expunge.run.methods import method_of
from expunge.run.recipes import find_recipe, recipe_header, recipe_names
from expunge.run.resolve import load_config

NAMES = recipe_names()
# What a reader must not have to look up elsewhere.
STATED = {"learning_rate", "num_train_epochs", "effective_batch_size", "micro_batch_size",
          "weight_decay", "lr_scheduler_type", "max_grad_norm", "precision"}  # fmt: skip


def test_there_is_a_recipe_for_every_method_and_model() -> None:
    methods = {name.split("/")[1].rsplit("_phi15")[0] for name in NAMES if name.endswith("_phi15")}

    assert {"demo", "custom"} <= set(NAMES)
    assert methods == {
        *("ga", "ga_gd", "ga_kl", "npo", "npo_gd", "npo_kl", "idk", "idk_gd", "idk_ap", "me_gd"),
        *("egu_npo_gd", "egup_npo_gd", "uipe_npo_gd"),
    }
    assert {f"tofu/{method}_llama2_7b" for method in methods} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name: str) -> None:
    config = load_config(find_recipe(name))
    raw = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))

    assert config.method is not None
    method = method_of(config.method)
    assert method.needs_retain <= (config.data.retain is not None)
    assert raw["training"].keys() >= STATED
    assert raw.keys() >= {"name", "output_dir", "seed", "model", "template", "data", "evaluation"}
    assert plan_batches(config.training, 400, world_size=1).total_steps > 1
    assert recipe_header(name).endswith(".")
    if name.startswith("tofu/"):
        assert config.name == name.replace("/", "-").replace("_", "-")
        assert config.finetune is not None
        assert raw["finetune"]["training"].keys() >= STATED


# One of each kind: with and without proxies, refusals, post-processing, lora.
@pytest.mark.parametrize(
    "name",
    [
        *("tofu/idk_ap_phi15", "tofu/uipe_npo_gd_phi15", "tofu/egup_npo_gd_phi15"),
        *("tofu/ga_gd_llama2_7b", "tofu/egup_npo_gd_llama2_7b"),
    ],
)
def test_recipe_passes_every_check_but_that_of_its_model(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    # The models are on a hub; whether they can be had is no property of the recipe.
    monkeypatch.chdir(tmp_path)
    report = check(load_config(find_recipe(name)))

    others = [p for p in report.problems if p.where not in {"model.path", "data.proxies"}]
    assert others == []
    assert {p.where for p in report.problems} >= {"model.path"}
    assert ("data.proxies" in {p.where for p in report.problems}) == ("egup" in name)


def test_the_demo_passes_every_check(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    report = check(load_config(find_recipe("demo")), verb="demo")

    assert [p for p in report.problems if p.where != "model.path"] == []
    assert dict(report.facts)["forget set"].startswith("40 rows")


def test_an_unknown_recipe_suggests_one() -> None:
    with pytest.raises(InputError, match="Did you mean tofu/npo_gd_phi15"):
        find_recipe("tofu/npo_gd_phi")
