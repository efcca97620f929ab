"""Compiled layers give the same numbers, and new lengths are compiled once and not every time."""

import copy

import pytest
import torch
from torch import nn

from expunge.core.errors import InputError
from expunge.data.collate import collate
from expunge.data.encode import Example
from expunge.models.forward import StreamRequest, forward_streams
from expunge.models.packing import find_layout, packable
from expunge.testing.tiny import tiny_model, tiny_tokenizer
from expunge.training.compiling import (
    bucket_length,
    compile_regions,
    num_graphs,
    release_regions,
    repeated_layers,
)

TOKENIZER = tiny_tokenizer()
SHAPES = [(2, 9), (3, 14), (2, 31), (4, 8), (2, 17), (5, 12), (3, 40), (2, 23), (6, 10), (3, 27)]


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(rows, length):
    """Rows of which every other one is padded."""
    generator = torch.Generator().manual_seed(rows * 100 + length)
    tokens = torch.randint(len(TOKENIZER), (rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    mask[::2, length - 3 :] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels, "use_cache": False}


def losses_and_gradients(model):
    found = []
    for shape in SHAPES:
        model.zero_grad()
        loss = model(**batch(*shape)).loss
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    return found


# inductor would only add the time of a C++ compiler; it is measured in perf/compile.py.
def test_losses_and_gradients_are_those_of_the_plain_model_and_few_graphs_are_made():
    plain, compiled = tiny_model(TOKENIZER).train(), tiny_model(TOKENIZER).train()
    names = list(dict(compiled.named_parameters()))
    assert compile_regions(compiled, backend="aot_eager") == 2
    before = num_graphs()

    wanted, found = losses_and_gradients(plain), losses_and_gradients(compiled)

    for (loss, gradient), (other, other_gradient) in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, loss, rtol=0, atol=1e-5)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-6)
    assert list(dict(compiled.named_parameters())) == names
    # One for both layers at all ten shapes; one more is allowed for a changed first guess.
    assert 1 <= num_graphs() - before <= 2


def test_without_dynamic_lengths_every_bucket_is_compiled_once():
    compiled = tiny_model(TOKENIZER).eval()
    compile_regions(compiled, backend="eager", dynamic=False)
    before = num_graphs()
    with torch.no_grad():
        for length in (20, 25, 30, 33, 50, 64, 17, 40):
            compiled(**batch(2, bucket_length(length, 32)))
    assert num_graphs() - before == 2


def test_released_layers_and_copies_run_as_written():
    compiled = tiny_model(TOKENIZER).eval()
    compile_regions(compiled, backend="eager")
    copied = copy.deepcopy(compiled)
    release_regions(compiled)
    before = num_graphs()
    with torch.no_grad():
        compiled(**batch(2, 9))
        copied(**batch(2, 9))
    assert num_graphs() == before


def test_nested_lists_stay_inside_their_layer():
    def layer():
        return nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})

    model = nn.ModuleDict({"head": nn.Linear(2, 2), "layers": nn.ModuleList([layer(), layer()])})
    assert list(repeated_layers(model)) == list(model["layers"])


def test_a_model_without_layers_and_an_unknown_backend_are_refused():
    with pytest.raises(InputError, match="Linear has no list of equal layers"):
        compile_regions(nn.Linear(2, 2))
    with pytest.raises(InputError, match="unknown backend 'inducter'"):
        compile_regions(tiny_model(TOKENIZER), backend="inducter")


@pytest.mark.parametrize(("length", "multiple", "wanted"), [(0, 64, 0), (1, 64, 64), (64, 64, 64)])
def test_buckets(length, multiple, wanted):
    assert bucket_length(length, multiple) == wanted


def test_a_bucket_without_width_is_refused():
    with pytest.raises(InputError, match="multiple is 0"):
        bucket_length(5, 0)


def test_packed_rows_of_new_lengths_are_not_compiled_anew():
    """Attention row by row runs between the compiled pieces of a layer."""

    def rows(lengths):
        examples = [
            Example(index=i, input_ids=tuple(range(3, 3 + length)), num_prompt=2)
            for i, length in enumerate(lengths)
        ]
        return {"forget": StreamRequest(rows=collate(examples, pad_token_id=0))}

    def losses(model):
        found = []
        for lengths in [(5, 9), (4, 4, 12), (8, 3, 5, 20), (6,), (30, 2), (11, 12, 13)]:
            out = forward_streams(model, rows(lengths), pad_token_id=0, layout=layout)
            out["forget"].logps.sum().backward()
            found.append(out["forget"].logps.sum().detach())
        return torch.stack(found)

    model = tiny_model(TOKENIZER).train()
    layout = find_layout(model)
    assert layout.packed
    with packable(model):
        wanted = losses(model)
    compile_regions(model, backend="aot_eager")
    before = num_graphs()
    with packable(model, compiled=True):
        torch.testing.assert_close(losses(model), wanted, rtol=1e-5, atol=1e-5)
    # Two pieces per layer, the second change of length may make both general.
    assert 1 <= num_graphs() - before <= 6
