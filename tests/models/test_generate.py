"""Generation: the same tokens as transformers' own greedy search, whatever the batching."""

import functools

import pytest
import torch

from expunge.core.errors import InputError
from expunge.models import decoding, generate, slots, trees
from expunge.models.generate import evaluating, generate_batches, generate_texts
from expunge.testing.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer("smollm2")


@pytest.fixture(scope="module")
def model():
    """A model that does not repeat one token for ever: larger weights make it lively."""
    model = tiny_model(TOKENIZER, max_length=128)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)
    return model


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    lengths = [9, 3, 30, 4, 17, 1, 9, 22]
    return [torch.randint(10, 500, (n,), generator=generator).tolist() for n in lengths]


def reference(model, prompt, limit, stops):
    """transformers' greedy search on one prompt alone, cut at the first stop token."""
    out = model.generate(
        input_ids=torch.tensor([prompt]), max_new_tokens=limit, do_sample=False, eos_token_id=-1
    )
    tokens = out[0, len(prompt) :].tolist()
    ends = [i for i, token in enumerate(tokens) if token in stops]
    return (tokens[: ends[0]], True) if ends else (tokens, False)


@pytest.fixture(scope="module")
def stops(model, prompts):
    """Tokens the model really says at different times, so that rows finish one by one."""
    said = [reference(model, prompt, 24, set())[0] for prompt in prompts]
    return {said[0][4], said[2][9], said[3][0], said[4][15]}


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_equals_generate(model, prompts, stops, batch_tokens):
    found = generate_texts(
        model,
        prompts,
        tokenizer=TOKENIZER,
        max_new_tokens=24,
        batch_tokens=batch_tokens,
        stop_ids=stops,
    )
    expected = [reference(model, prompt, 24, stops) for prompt in prompts]
    assert [(list(g.token_ids), g.finished) for g in found] == expected
    finished = [g.finished for g in found]
    assert any(finished)
    assert not all(finished)
    assert len({len(g.token_ids) for g in found}) > 3  # rows did leave at different times
    assert found[3].token_ids == ()  # it ended at once
    assert found[3].text == ""
    assert found[0].text == TOKENIZER.decode(found[0].token_ids)


def step_sizes(model, monkeypatch, work):
    """Rows of every step of one token."""
    sizes = []
    forward = type(model).forward

    @functools.wraps(forward)  # what it takes decides what it is given
    def spy(self, *args, **kwargs):
        if kwargs["input_ids"].shape[1] == 1:
            sizes.append(len(kwargs["input_ids"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", spy)
    work()
    return sizes


def test_rows_leave_the_batch(model, prompts, stops, monkeypatch):
    options = {"tokenizer": TOKENIZER, "max_new_tokens": 24, "stop_ids": stops}
    expected = [reference(model, prompt, 24, stops) for prompt in prompts]
    sizes = step_sizes(model, monkeypatch, lambda: generate_texts(model, prompts, **options))
    # A row takes part in as many steps as it needs tokens after the first, and in no more.
    steps = [min(len(tokens) + ended, 24) - 1 for tokens, ended in expected]
    assert sizes == [sum(own > step for own in steps) for step in range(max(steps))]
    assert len(set(sizes)) > 3


def test_a_prompt_that_waits_takes_a_finished_ones_place(model, prompts, stops, monkeypatch):
    """Two places for eight prompts of one length: never more than two rows, seldom fewer."""
    alike = [(prompt * 9)[:9] for prompt in prompts]
    options = {"tokenizer": TOKENIZER, "max_new_tokens": 24, "stop_ids": stops, "batch_tokens": 18}
    expected = [reference(model, prompt, 24, stops) for prompt in alike]
    found = []
    sizes = step_sizes(
        model, monkeypatch, lambda: found.extend(generate_texts(model, alike, **options))
    )
    assert [(list(g.token_ids), g.finished) for g in found] == expected
    assert max(sizes) == 2
    steps = sum(min(len(tokens) + ended, 24) - 1 for tokens, ended in expected)
    assert sum(sizes) == steps
    longest = max(len(tokens) for tokens, _ in expected)
    assert len(sizes) <= steps / 2 + longest / 2 + 1


@pytest.mark.parametrize("kind", ["slots", "slots without trees", "another cache"])
def test_every_kind_of_cache_gives_the_same(model, prompts, stops, monkeypatch, kind):
    if kind == "slots without trees":
        monkeypatch.setattr(decoding, "tree_support", lambda _: trees.TreeSupport())
    if kind == "another cache":
        monkeypatch.setattr(slots, "slots_for", lambda *_: None)
    found = generate_texts(
        model,
        prompts,
        tokenizer=TOKENIZER,
        max_new_tokens=24,
        batch_tokens=70,
        stop_ids=stops,
    )
    expected = [reference(model, prompt, 24, stops) for prompt in prompts]
    assert [(list(g.token_ids), g.finished) for g in found] == expected


def test_a_sliding_window_has_a_cache_of_its_own_kind(prompts):
    """Slots would keep what the window has left behind; the model's own cache is used instead."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        pad_token_id=0,
    )
    windowed = MistralForCausalLM(config).eval()
    with torch.no_grad():
        for weight in windowed.parameters():
            weight.mul_(5.0)
    assert slots.slots_for(windowed, 4) is None
    found = generate_texts(
        windowed, prompts, tokenizer=TOKENIZER, max_new_tokens=8, stop_ids=(), batch_tokens=70
    )
    expected = [reference(windowed, prompt, 8, ())[0] for prompt in prompts]
    assert [list(g.token_ids) for g in found] == expected


def test_each_prompt_may_have_its_own_limit(model, prompts):
    limits = [0, 1, 2, 3, 4, 5, 6, 7]
    found = generate_texts(model, prompts, tokenizer=TOKENIZER, max_new_tokens=limits, stop_ids=())
    assert [len(g.token_ids) for g in found] == limits
    expected = [
        reference(model, prompt, n, ())[0] if n else []
        for prompt, n in zip(prompts, limits, strict=True)
    ]
    assert [list(g.token_ids) for g in found] == expected


def test_the_context_limits_the_answer(model):
    """126 prompt tokens in a context of 128 leave room for 2."""
    (found,) = generate_texts(
        model, [[11] * 126], tokenizer=TOKENIZER, max_new_tokens=50, stop_ids=()
    )
    assert len(found.token_ids) == 2
    assert not found.finished


def test_default_stops_are_the_models_and_the_tokenizers(model):
    model.generation_config.eos_token_id = [7, 8]
    try:
        assert generate.default_stop_ids(model, TOKENIZER) == {7, 8, TOKENIZER.eos_token_id}
    finally:
        model.generation_config.eos_token_id = None


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[5], []], "prompt 1 is empty"), ([[5] * 129], "has 129 tokens .* sees only 128")],
)
def test_impossible_prompts(model, prompts, message):
    with pytest.raises(InputError, match=message):
        generate_texts(model, prompts, tokenizer=TOKENIZER, max_new_tokens=4)


def test_progress_ends_at_all(model, prompts):
    seen = []
    generate_texts(
        model,
        prompts,
        tokenizer=TOKENIZER,
        max_new_tokens=2,
        batch_tokens=40,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == (len(prompts), len(prompts))


def test_batches_keep_to_the_budget(model, prompts):
    for batch in generate_batches(
        model, prompts, tokenizer=TOKENIZER, max_new_tokens=2, batch_tokens=40
    ):
        width = max(len(prompts[position]) for position, _ in batch)
        assert len(batch) == 1 or len(batch) * width <= 40


def test_sampling_does_not_depend_on_the_batch(model, prompts):
    def sample(seed, batch_tokens):
        return generate_texts(
            model,
            prompts,
            tokenizer=TOKENIZER,
            max_new_tokens=8,
            temperature=1.0,
            seed=seed,
            batch_tokens=batch_tokens,
            stop_ids=(),
        )

    assert sample(0, 4096) == sample(0, 30)
    assert sample(0, 4096) != sample(1, 4096)


def test_sampling_follows_the_distribution(model):
    """2000 first tokens of one prompt: the share of the likeliest is its probability."""
    prompt = [11, 42, 99]
    with torch.no_grad():
        shares = (model(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    found = generate_texts(
        model,
        [prompt] * 2000,
        tokenizer=TOKENIZER,
        max_new_tokens=1,
        temperature=0.7,
        seed=3,
        stop_ids=(),
    )
    top = int(shares.argmax())
    p = float(shares[top])
    seen = sum(g.token_ids == (top,) for g in found) / 2000
    assert abs(seen - p) < 4 * (p * (1 - p) / 2000) ** 0.5


def test_a_low_temperature_is_nearly_greedy(model, prompts):
    options = {"tokenizer": TOKENIZER, "max_new_tokens": 6, "stop_ids": ()}
    cold = generate_texts(model, prompts, temperature=1e-4, **options)
    assert cold == generate_texts(model, prompts, **options)


def test_modes_and_gradients_are_restored(model):
    model.train()
    model.model.layers[0].eval()  # a frozen part may stay in eval mode while the rest trains
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
        assert model.training
        assert not model.model.layers[0].mlp.training
        assert model.model.layers[1].training
        assert torch.is_grad_enabled()
    finally:
        model.eval()


def test_training_goes_on_after_generating(model, prompts):
    generate_texts(model, prompts[:1], tokenizer=TOKENIZER, max_new_tokens=2)
    model(torch.tensor([prompts[0]])).logits.sum().backward()
    assert model.lm_head.weight.grad is not None
    model.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_first_of_several_largest_is_chosen(dtype):
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0], [float("-inf")] * 3], dtype=dtype)
    assert decoding.first_choice(logits).tolist() == [1, 0, 0]
