"""Plain text in pieces. Letters are tokens here, so that every piece can be read."""

import pytest

from expunge.core.errors import InputError
from expunge.data.chunks import chunk_text, encode_text
from expunge.data.golden import ToyTokenizer
from expunge.data.sources import load_rows
from expunge.testing.tiny import tiny_tokenizer

TOY = ToyTokenizer("abcdefghijklmnopqrstuvwxyz \n")


def pieces(texts, form, length):
    """Pieces as text, with ^ for the beginning token."""
    found = chunk_text(texts, TOY, max_length=length, form=form)
    return ["".join("^" if i == TOY.bos_token_id else TOY.decode([i]) for i in p) for p in found]


def test_muse_fills_the_last_piece_with_the_beginning_of_the_first():
    assert pieces(["abcdefgh"], "muse", 4) == ["^abc", "^def", "^gh^"]
    assert pieces(["abcdef"], "muse", 4) == ["^abc", "^def"]
    assert pieces(["ab"], "muse", 4) == ["^ab"]


def test_short_last_leaves_it_short():
    assert pieces(["abcdefgh"], "short_last", 4) == ["^abc", "^def", "^gh"]


def test_several_texts_are_joined_by_a_blank_line_or_kept_apart():
    assert pieces(["abcd", "ef"], "short_last", 5) == ["^abcd", "^\n\nef"]
    assert pieces(["abcde", "fg"], "separate", 4) == ["^abc", "^de", "^fg"]


def test_open_unlearning_counts_without_the_beginning_token():
    assert pieces(["abcdefgh"], "open_unlearning", 3) == ["^abc", "^def", "^gh"]


def test_the_beginning_token_follows_the_tokenizer():
    """SmolLM2 was not trained with one; Llama was."""
    ids = chunk_text(["A small tale"], tiny_tokenizer("smollm2"), max_length=4, form="short_last")
    bos = tiny_tokenizer("smollm2").bos_token_id
    assert all(bos not in piece for piece in ids)
    llama = tiny_tokenizer("llama3")
    ids = chunk_text(["A small tale"], llama, max_length=4, form="short_last")
    assert all(piece[0] == llama.bos_token_id and len(piece) <= 4 for piece in ids)


def test_pieces_hold_all_of_the_text_in_order():
    text = "the quick brown fox jumps over the lazy dog"
    for length in range(2, 50):
        for form in ("short_last", "open_unlearning", "separate"):
            found = pieces([text], form, length)
            assert "".join(piece.removeprefix("^") for piece in found) == text
        assert all(len(piece) == length for piece in pieces([text], "muse", length)[:-1])


def test_examples_count_pieces_and_label_everything():
    rows = load_rows([{"text": "abcdefgh"}], name="forget")
    muse = encode_text(rows, TOY, max_length=4)
    assert [example.index for example in muse] == [0, 1, 2]
    assert [example.num_prompt for example in muse] == [0, 0, 0]
    other = encode_text(rows, TOY, max_length=4, form="open_unlearning")
    assert [example.num_prompt for example in other] == [1, 1]


def test_what_cannot_be_cut():
    rows = load_rows([{"question": "Q", "answer": "A"}], name="forget")
    with pytest.raises(InputError, match="row 0 is a conversation"):
        encode_text(rows, TOY, max_length=4)
    with pytest.raises(InputError, match="leaves no room"):
        chunk_text(["a"], TOY, max_length=1)
    with pytest.raises(InputError, match="Did you mean muse"):
        chunk_text(["a"], TOY, max_length=4, form="mus")
    one = load_rows([{"text": "x"}], name="forget")
    with pytest.raises(InputError, match="too short"):
        encode_text(one, tiny_tokenizer("smollm2"), max_length=4)
