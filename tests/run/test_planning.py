"""The cost model: counted parameters, stored bytes and FLOPs, and how they grow."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from expunge.composition.notation import parse
from expunge.core.errors import InputError
from expunge.models.packing import packable, packed_arguments, packed_pass
from expunge.run.planning.devices import DEVICES, Probe, find_device, this_cpu
from expunge.run.planning.memory import (
    Memory,
    Placement,
    activations,
    pass_memory,
    training_memory,
)
from expunge.run.planning.planner import plan_all, plan_one
from expunge.run.planning.reading import joined, method_work
from expunge.run.planning.shapes import SHAPES, ModelShape, find_shape, shape_of
from expunge.run.planning.speed import (
    Evaluation,
    evaluation_time,
    forward_flops,
    gradient_flops,
    step_cost,
    training_time,
)
from expunge.run.planning.workload import Lengths, Settings, Work

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 300}
EVEN = Lengths.even(40, 80, 40)
BOTH = Work(
    streams={"forget": EVEN, "retain": EVEN},
    trained=("forget", "retain"),
    references={"forget": "table"},
)
TINY = ModelShape(
    name="tiny", layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, inner=16, vocab=32, tied=True
)


def meta_model(family: str, **dimensions: Any) -> Any:
    config = AutoConfig.for_model(family, **SMALL, **dimensions)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


# Parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "dimensions"),
    [
        ("llama", {"intermediate_size": 160, "num_key_value_heads": 2}),
        ("llama", {"intermediate_size": 160, "tie_word_embeddings": True, "head_dim": 32}),
        ("mistral", {"intermediate_size": 96, "num_key_value_heads": 1}),
        ("qwen2", {"intermediate_size": 160, "num_key_value_heads": 2}),
        ("qwen3", {"intermediate_size": 160, "num_key_value_heads": 2, "head_dim": 16}),
        ("gemma2", {"intermediate_size": 160, "num_key_value_heads": 2, "head_dim": 16}),
        ("phi", {"intermediate_size": 256}),
        ("mixtral", {"intermediate_size": 96, "num_local_experts": 4, "num_key_value_heads": 2}),
        (
            "qwen3_moe",
            {
                "intermediate_size": 96,
                "moe_intermediate_size": 48,
                "num_experts": 4,
                "head_dim": 16,
            },
        ),
    ],
)
def test_parameters_are_those_of_the_real_model(family: str, dimensions: dict[str, Any]) -> None:
    model = meta_model(family, **dimensions)

    shape = shape_of(model.config.to_dict(), name="m")

    assert shape.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("size", "published"), [("1B", 1_235_814_400), ("8B", 8_030_261_248), ("70B", 70_553_706_496)]
)
def test_built_in_sizes_have_the_published_number_of_parameters(size: str, published: int) -> None:
    assert SHAPES[size].num_parameters == published


def test_adapters_are_counted_as_peft_makes_them() -> None:
    from peft import LoraConfig, get_peft_model

    model = meta_model("llama", intermediate_size=160, num_key_value_heads=2)
    shape = shape_of(model.config.to_dict(), name="m")
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    made = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)

    assert shape.adapter_parameters(4) == made
    assert shape.adapter_parameters(4, ("q_proj",)) == 3 * 4 * (64 + 64)


def test_a_pattern_selects_what_trains() -> None:
    shape = shape_of(meta_model("llama", intermediate_size=160).config.to_dict(), name="m")

    assert shape.trained(r"layers\.(1|2)\.mlp\.down_proj") == (2 * 160 * 64, 1)
    assert shape.trained("all") == (shape.num_parameters, 0)


# FLOPs, with a twin by hand ---------------------------------------------------------------------


def test_forward_flops_by_hand() -> None:
    """One row of 5 tokens with 3 labels through two blocks of width 8.

    Per token and block: q 8*8, k and v 8*4 each, o 8*8, three times 8*16. Attention: every token
    meets 5 others in two heads of width 4, once for scores and once for values.
    """
    matrices = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    by_hand = 2 * 2 * matrices * 5 + 2 * (2 * 5 * 5 * 8) * 2 + 2 * 32 * 8 * 3

    assert forward_flops(TINY, tokens=5, squares=25, labels=3) == by_hand


def test_forward_flops_are_those_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(**SMALL, intermediate_size=160, num_key_value_heads=2)
    config._attn_implementation = "eager"
    model: Any = LlamaForCausalLM(config)
    ids = torch.zeros(1, 24, dtype=torch.long)
    shape = shape_of(config.to_dict(), name="m")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    counted = counter.get_total_flops()
    predicted = forward_flops(shape, tokens=24, squares=24**2, labels=24)
    # The rotary embedding's table of angles is a product as well.
    assert predicted == pytest.approx(counted, rel=2e-3)


def test_the_backward_pass_takes_twice_the_forward_pass() -> None:
    numbers = {"tokens": 100.0, "squares": 5000.0, "labels": 40.0}
    once = forward_flops(TINY, **numbers)

    assert gradient_flops(TINY, Settings(), **numbers) == pytest.approx(3 * once)
    blocks = once - 2 * TINY.head * 40
    again = gradient_flops(TINY, Settings(checkpointing=True), **numbers)
    assert again == pytest.approx(3 * once + blocks)
    assert gradient_flops(TINY, Settings(rank=1), **numbers) < 3 * once


def test_the_issue_s_step() -> None:
    """633 real tokens and 320 labels in eight rows: 469 GFLOP were counted for SmolLM2-135M."""
    row = Lengths.even(40, 633 / 8, 40)
    work = Work(streams={"forget": row, "retain": row}, trained=("forget", "retain"))
    shape = SHAPES["builtin:smollm2-135m-instruct"]

    flops = step_cost(shape, work, Settings(effective_batch=4)).flops

    assert flops == pytest.approx(469e9, rel=0.01)


def test_passes_without_gradient_cost_a_third() -> None:
    plain = step_cost(TINY, BOTH, Settings()).flops
    proxy = replace(BOTH, streams={**BOTH.streams, "proxy": EVEN}, ahead=("proxy",))
    one = step_cost(TINY, proxy, Settings()).flops - plain
    gradient = step_cost(TINY, replace(BOTH, trained=("forget",)), Settings()).flops

    assert gradient == pytest.approx(3 * one)
    assert step_cost(TINY, replace(BOTH, uphill=2), Settings()).flops == 2 * plain
    beside = replace(BOTH, references={"forget": "frozen_copy"})
    assert step_cost(TINY, beside, Settings()).flops == pytest.approx(plain + one)


# Stored bytes against what autograd keeps -------------------------------------------------------

HOOKED = {"intermediate_size": 160, "num_key_value_heads": 2, "max_position_embeddings": 64}


def stored_by_torch(precision: str, attention: str, *, rank: int, dropout: float) -> float:
    """Bytes of one more block in what a forward pass over 24 tokens keeps, weights left out."""
    totals = []
    for layers in (1, 2):
        config = LlamaConfig(**{**SMALL, "num_hidden_layers": layers}, **HOOKED)
        config._attn_implementation = "eager" if attention == "scores" else "sdpa"
        model: Any = LlamaForCausalLM(config)
        if precision == "bfloat16":
            model.to(torch.bfloat16)
        if rank:
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(r=rank, lora_dropout=dropout, target_modules="all-linear")
            model = get_peft_model(model, lora)
        kept = _kept(model.train(), mixed=precision == "mixed", packed=attention == "rows")
        totals.append(kept)
    return totals[1] - totals[0]


def _kept(model: Any, *, mixed: bool, packed: bool) -> float:
    own = {id_of(value) for value in [*model.parameters(), *model.buffers()]}
    sizes = {p.numel() for p in model.parameters() if p.ndim == 2}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        is_cast = tensor.dtype == torch.bfloat16 and tensor.numel() in sizes
        if id_of(tensor) not in own and not is_cast:
            kept[id_of(tensor)] = tensor
        return tensor

    ids = torch.arange(24)[None]
    given: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1}
    with contextlib.ExitStack() as stack:
        if packed:
            stack.enter_context(packable(model))
            stack.enter_context(packed_pass())
            given |= packed_arguments([7, 17], torch.device("cpu"))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor))
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed))
        out = model(input_ids=ids, **given)
    assert out.logits.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def id_of(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@pytest.mark.parametrize("attention", ["scores", "fused", "rows"])
@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
@pytest.mark.parametrize(("rank", "dropout"), [(0, 0.0), (5, 0.05), (5, 0.0)])
def test_stored_bytes_are_those_autograd_keeps(
    precision: Any, attention: Any, rank: int, dropout: float
) -> None:
    config = {**SMALL, **HOOKED, "model_type": "llama"}
    settings = Settings(
        precision=precision, attention=attention, rank=rank, dropout=dropout > 0, frozen_bytes=4
    )
    shape = shape_of(config, name="m")
    predicted = activations(shape, settings, 24, 24, 2) - activations(shape, settings, 24, 24, 1)

    found = stored_by_torch(precision, attention, rank=rank, dropout=dropout)

    assert predicted == pytest.approx(found, rel=0.03)


# How it grows -----------------------------------------------------------------------------------


def memory(work: Work = BOTH, **changes: Any) -> Memory:
    place = Placement(
        world=changes.pop("world", 1), sharding=changes.pop("sharding", "none"), gpu=False
    )
    shape = changes.pop("shape", SHAPES["1B"])
    return training_memory(shape, work, Settings(**changes), place)


def test_activations_are_linear_in_tokens() -> None:
    one, two, four = (memory(micro_batch=size).activations for size in (1, 2, 4))

    assert two == pytest.approx(2 * one)
    assert four == pytest.approx(4 * one)


def test_logits_are_flat_beyond_a_chunk() -> None:
    shape = replace(SHAPES["1B"], vocab=256_000)
    long = Work(streams={"forget": Lengths.even(4, 2000, 1900)}, trained=("forget",))
    longer = Work(streams={"forget": Lengths.even(4, 4000, 3800)}, trained=("forget",))

    assert memory(long, shape=shape).logits == memory(longer, shape=shape).logits
    whole = memory(replace(long, whole=("forget",)), shape=shape)
    assert whole.logits > 10 * memory(long, shape=shape).logits


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"micro_batch": 2}, {"micro_batch": 4}),
        ({"checkpointing": True}, {}),
        ({"rank": 8}, {}),
        ({"optimizer": "adamw_8bit"}, {"optimizer": "adamw"}),
        ({"precision": "bfloat16"}, {"precision": "mixed"}),
        ({"precision": "bfloat16"}, {"precision": "bfloat16", "master": True}),
        ({"world": 8, "sharding": "full"}, {"world": 8, "sharding": "optimizer"}),
        ({"world": 8, "sharding": "optimizer"}, {"world": 8}),
        ({"world": 16, "sharding": "full"}, {"world": 8, "sharding": "full"}),
        ({}, {"shape": SHAPES["8B"]}),
        ({"attention": "fused"}, {"attention": "scores"}),
    ],
)
def test_the_peak_is_monotonic(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert memory(**less).peak < memory(**more).peak


def test_a_copy_of_the_model_costs_its_weights() -> None:
    beside = memory(replace(BOTH, copies=1))

    assert beside.peak - memory().peak == SHAPES["1B"].num_parameters * 4


def test_the_peak_is_at_least_what_always_exists_and_at_most_the_sum() -> None:
    found = memory(effective_batch=32, micro_batch=4)
    always = found.weights + found.optimizer + found.gradients

    assert always <= found.peak <= sum(found.parts().values()) * 1.01


def test_padding_costs_what_the_longest_row_costs() -> None:
    uneven = Lengths.of([10, 10, 10, 50], [5, 5, 5, 5])
    work = Work(streams={"forget": uneven}, trained=("forget",))

    packed = memory(work, micro_batch=4, effective_batch=4)
    padded = memory(work, micro_batch=4, effective_batch=4, packed=False)
    assert padded.activations / packed.activations == pytest.approx(200 / 80)


@pytest.mark.parametrize("sharding", ["none", "optimizer", "full"])
def test_more_devices_never_compute_longer(sharding: Any) -> None:
    times = [
        training_time(
            SHAPES["8B"],
            BOTH,
            Settings(precision="mixed", micro_batch=1),
            DEVICES["h100-80"],
            world=world,
            sharding=sharding,
        ).compute
        for world in (1, 2, 4, 8, 16, 32, 64)
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] == pytest.approx(32 * times[-1])  # 32 rows cannot be shared by more devices


def test_time_grows_with_the_model_the_rows_and_the_passes() -> None:
    def run(shape: ModelShape, work: Work, **changes: Any) -> float:
        settings = Settings(precision="mixed", steps=10, **changes)
        device = DEVICES["a100-80"]
        return training_time(shape, work, settings, device, world=1, sharding="none").run

    base = run(SHAPES["1B"], BOTH)
    assert run(SHAPES["8B"], BOTH) > base
    assert run(SHAPES["1B"], BOTH, effective_batch=64) > base
    assert run(SHAPES["1B"], replace(BOTH, uphill=2)) > base
    assert run(SHAPES["1B"], BOTH, rank=8) < base


def test_evaluation_grows_with_answers_and_new_tokens() -> None:
    def seconds(**changes: Any) -> float:
        wanted = Evaluation(rows=100, lengths=EVEN, **changes)
        return evaluation_time(SHAPES["1B"], wanted, DEVICES["h200"], precision="mixed", width=2)

    assert seconds() < seconds(answers=7) < seconds(answers=7, new_tokens=50)
    assert seconds(models=3) == pytest.approx(3 * seconds())


def test_a_cache_of_keys_is_counted_once_per_token() -> None:
    plain = {"tokens": 10, "labels": 0, "weight_bytes": 4, "chunk": 1}
    cached = pass_memory(TINY, **plain, cached=True) - pass_memory(TINY, **plain, cached=False)

    assert cached == 2 * 2 * 4 * 10 * 4  # keys and values, blocks, width, tokens, bytes


def test_lengths() -> None:
    found = Lengths.of([10, 20], [5, 8])

    assert (found.tokens, found.labels, found.square, found.spread) == (15, 6.5, 250, 5)
    assert found.most(1, 1) == 15
    assert found.most(4, 10**9) == 80  # never more than rows of the longest
    assert joined([found, found]) == replace(found, rows=4)


# Plans ------------------------------------------------------------------------------------------


def test_the_first_sharding_that_fits_is_taken() -> None:
    settings = Settings(precision="mixed")
    device = DEVICES["h100-80"]
    plans = plan_all([SHAPES["8B"]], [1, 8], BOTH, settings, device)

    assert [(plan.fits, plan.sharding) for plan in plans] == [(False, "none"), (True, "optimizer")]
    forced = plan_one(SHAPES["8B"], 8, BOTH, settings, device, sharding="none")
    assert not forced.fits


def test_rows_are_shared_out_before_devices_stay_idle() -> None:
    plan = plan_one(SHAPES["1B"], 16, BOTH, Settings(micro_batch=4), DEVICES["h200"])

    assert (plan.micro_batch, plan.accumulation) == (2, 1)


@pytest.mark.parametrize(
    ("method", "trained", "ahead", "references", "copies"),
    [
        ("GA", ("forget",), (), {}, 0),
        ("NPO+GD", ("forget", "retain"), (), {"forget": "table"}, 0),
        ("EGUP(NPO+GD)", ("forget", "retain"), ("proxy",), {"forget": "table"}, 0),
    ],
)
def test_passes_of_methods(
    method: str, trained: Any, ahead: Any, references: Any, copies: int
) -> None:
    lengths = {"forget": EVEN, "retain": EVEN}
    work = method_work(parse(method), lengths, lora=False)

    assert (work.trained, work.ahead, work.copies) == (trained, ahead, copies)
    assert dict(work.references) == references


def test_a_method_without_its_retain_set_is_refused() -> None:
    with pytest.raises(InputError, match=r"data.retain: NPO\+GD needs a retain set"):
        method_work(parse("NPO+GD"), {"forget": EVEN}, lora=False)


# Bad input --------------------------------------------------------------------------------------


def test_a_measured_processor() -> None:
    cpu = this_cpu(Probe(fp32=100e9, bf16=200e9, bandwidth=10e9), memory=2**33)

    assert cpu.rate("float32") == pytest.approx(70e9)
    assert cpu.rate("mixed") == pytest.approx(100e9)
    with pytest.raises(InputError, match="2 with --device cpu"):
        plan_all([TINY], [2], BOTH, Settings(), cpu)


@pytest.mark.parametrize("number", [0, 65])
def test_numbers_of_devices(number: int) -> None:
    with pytest.raises(InputError, match=f"--gpus: {number} is out of range"):
        plan_all([TINY], [number], BOTH, Settings(), DEVICES["h200"])


def test_unknown_names(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="--device h10: Did you mean h100-80"):
        find_device("h10")
    with pytest.raises(InputError, match="9B: no such size, model folder or config file"):
        find_shape("9B")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken.json: cannot be read as JSON"):
        find_shape(str(tmp_path / "broken.json"))
    with pytest.raises(InputError, match="models of type 'mamba'"):
        shape_of({"model_type": "mamba"}, name="m")
    with pytest.raises(InputError, match="hidden_size: must be a whole number") as caught:
        shape_of({"model_type": "llama", "vocab_size": -1}, name="m")
    assert len(caught.value.problems) == 5
