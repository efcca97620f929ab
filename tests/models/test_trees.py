"""Trees: every beginning once, and the numbers of each text by itself."""

import pytest
import torch

from expunge.models import trees
from expunge.models.trees import grow, plant, shared_beginning, tree_support, walking
from expunge.testing.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer("smollm2")


@pytest.fixture(scope="module")
def model():
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)
    return model


def test_answers_share_what_they_begin_with():
    """Stem 5 6; answers 7 8 9 and 7 8 1 2 and 3: the nodes are 7, 8, 1; last tokens are none."""
    tree = grow([5, 6], [[7, 8, 9], [7, 8, 1, 2], [3], []])
    assert tree.tokens == [5, 6, 7, 8, 1]
    assert tree.parents == [-1, 0, 1, 2, 3]
    assert tree.depths == [0, 1, 2, 3, 4]
    assert tree.paths == [[1, 2, 3], [1, 2, 3, 4], [1], []]


def test_an_answer_may_be_the_beginning_of_another():
    tree = grow([5], [[7], [7, 8]])
    assert tree.tokens == [5, 7]
    assert tree.paths == [[0], [0, 1]]


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2], [1, 2, 4]], 1),  # the last token of each is its own
        ([[1, 2, 3]], 2),
        ([[1], [1]], 0),
        ([[3, 1], [4, 1]], 0),
    ],
)
def test_shared_beginning(prompts, shared):
    assert shared_beginning(prompts) == shared


def texts(tree):
    """Every way from the root, as places."""
    for place in range(len(tree.tokens)):
        way = [place]
        while tree.parents[way[0]] >= 0:
            way.insert(0, tree.parents[way[0]])
        yield way


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("trunk", [0, 2])
def test_every_text_gets_its_own_states(model, trunk, together):
    grown = [
        grow([4, 8, 15], [[16, 23, 42, 7], [16, 23, 99, 100, 101], [200, 7]]),
        grow([4, 8, 99, 98, 97]),
        grow([4, 8, 30], [[31, 32]]),
    ]
    forest = plant(grown, trunk=trunk, together=together)
    assert forest.ids.shape[1] == sum(len(tree.tokens) for tree in grown) - 2 * trunk
    assert forest.longest == 7
    with torch.no_grad(), walking(model, forest) as arguments:
        found = model(**arguments).logits[0]
    for number, tree in enumerate(grown):
        for way in texts(tree):
            ids = torch.tensor([[tree.tokens[place] for place in way]])
            with torch.no_grad():
                own = model(ids).logits[0, -1]
            torch.testing.assert_close(
                found[forest.place(number, way[-1])], own, rtol=1e-4, atol=1e-5
            )


def test_the_attention_is_put_back(model):
    before = model.config._attn_implementation
    with walking(model, plant([grow([1, 2])])):
        assert model.config._attn_implementation == trees.ATTENTION
    assert model.config._attn_implementation == before
    assert tree_support(model).works


def test_a_wrong_mask_is_found_out(model, monkeypatch):
    """The trial sees it when tokens see the other branch."""
    seen = trees._seen

    def blind(tree, trunk):
        right = seen(tree, trunk)
        return torch.ones_like(right).tril(right.shape[1] - right.shape[0])

    monkeypatch.setattr(trees, "_seen", blind)
    assert not tree_support(model).works


def test_a_window_limits_the_length(model):
    support = trees.TreeSupport(works=True, longest=4)
    assert support.fits(4)
    assert not support.fits(5)
    assert not trees.TreeSupport().fits(1)
