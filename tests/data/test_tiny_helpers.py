"""The tiny tokenizer, model and facts are the same at every call, and leave the random state."""

import torch

from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts


def test_the_tokenizer_is_the_same_every_time_and_loses_nothing():
    first, second = tiny_tokenizer("llama3"), tiny_tokenizer("llama3")
    assert first.get_vocab() == second.get_vocab()
    text = "Ünïcödé 北京 🎉\n\ttabs  and  spaces"
    assert first.decode(first(text, add_special_tokens=False)["input_ids"]) == text


def test_padding_tokens():
    assert tiny_tokenizer().pad_token_id == tiny_tokenizer().eos_token_id
    assert tiny_tokenizer(pad="own").pad_token_id != tiny_tokenizer().eos_token_id
    assert tiny_tokenizer(pad="none").pad_token_id is None


def test_the_model_depends_on_its_seed_alone():
    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (tiny_model(tokenizer, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    ids = torch.tensor([tokenizer("Where was Mira born?")["input_ids"]])
    with torch.no_grad():
        a, b, c = (model(ids).logits for model in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not first.training


def test_facts_are_different_and_their_wrong_answers_wrong():
    facts = toy_facts(130, perturbed=True)
    assert len({fact["question"] for fact in facts}) == 130
    for fact in facts:
        assert fact["paraphrased_answer"] not in fact["perturbed_answer"]
        assert len(set(fact["perturbed_answer"])) == 3
    plain = [{k: fact[k] for k in ("question", "answer")} for fact in facts[:7]]
    assert toy_facts(7) == plain
