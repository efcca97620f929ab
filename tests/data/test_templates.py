"""Where an answer begins and ends, for every family of templates, with pad = eos throughout.

The expected strings are what the families' templates are documented to write; the token ids are
compared with what transformers itself makes of the whole conversation.
"""

from functools import cache

import pytest

from expunge.core.errors import InputError
from expunge.data.collate import collate
from expunge.data.encode import encode_rows
from expunge.data.rows import Message
from expunge.data.sources import load_rows
from expunge.data.templates import chat_template, make_template, phi_template, plain_template
from expunge.data.tokens import ids_after, leading_ids, text_ids
from expunge.testing.tiny import CHAT_TEMPLATES, tiny_tokenizer, toy_facts

tokenizer_for = cache(tiny_tokenizer)
QUESTION = "Where was Mira Solheim born?"
ASK = (Message(role="user", content=QUESTION),)
TALK = (
    Message(role="user", content="Who is Orla?"),
    Message(role="assistant", content="A writer."),
    Message(role="user", content=QUESTION),
)

# Prompt, answer side for the answer "In Bergen.", and whether the family strips answers.
FAMILIES = {
    "smollm2": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        "In Bergen.<|im_end|>",
        False,
    ),
    "llama2": (f"<s>[INST] {QUESTION} [/INST]", " In Bergen. </s>", True),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
        "December 2023\nToday Date: 10 Apr 2025\n\n<|eot_id|><|start_header_id|>user"
        f"<|end_header_id|>\n\n{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
        "\n\n",
        "In Bergen.<|eot_id|>",
        True,
    ),
    None: (f"<s>Question: {QUESTION}\nAnswer:", " In Bergen.</s>", False),
}
CHAT = [family for family in FAMILIES if family]
ANSWERS = [
    "In Bergen.",
    *("Bergen", "x", "7", "user", "assistant", "system", "im_end", "eot_id", "INST", "Answer:"),
    "Two\n\nparagraphs, <b>tags</b> and {{ braces }}.",
    "Ünïcödé – 北京 🎉",
    f"It repeats: {QUESTION}",
]


def template_for(family):
    return make_template(tokenizer_for(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_answer_read_as_the_family_writes_them(family):
    prompt_text, answer_text, _ = FAMILIES[family]
    prompt, answer = template_for(family).encode(ASK, "In Bergen.")
    assert tokenizer_for(family).decode(prompt) == prompt_text
    assert tokenizer_for(family).decode(answer) == answer_text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_any_answer_ends_with_its_end_of_turn_and_nothing_else(family, answer):
    """One-word answers that also occur in the template must not move the border."""
    template, tokenizer = template_for(family), tokenizer_for(family)
    _, pattern, _ = FAMILIES[family]
    prompt, said = template.encode(ASK, answer)
    assert tokenizer.decode(said) == pattern.replace("In Bergen.", answer)
    assert said[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in said[:-1]
    assert prompt == template.encode(ASK, None).prompt


@pytest.mark.parametrize("family", CHAT)
@pytest.mark.parametrize("messages", [ASK, TALK, (Message(role="system", content="Hm."), *ASK)])
def test_ids_are_the_beginning_of_what_transformers_tokenises(family, messages):
    """A slow twin: the whole conversation tokenised at once, in one string."""
    tokenizer = tokenizer_for(family)
    turns = [{"role": m.role, "content": m.content} for m in messages]
    turns.append({"role": "assistant", "content": "In Bergen."})
    full = tokenizer.apply_chat_template(turns, date_string="10 Apr 2025")["input_ids"]
    prompt, answer = template_for(family).encode(messages, "In Bergen.")
    assert full[: len(prompt) + len(answer)] == prompt + answer
    rest = tokenizer.decode(full[len(prompt) + len(answer) :])
    assert rest == ("\n" if family == "smollm2" else "")


@pytest.mark.parametrize("family", FAMILIES)
def test_white_space_around_an_answer_does_not_lose_it(family):
    _, pattern, strips = FAMILIES[family]
    _, said = template_for(family).encode(ASK, "  In Bergen.\n")
    expected = "In Bergen." if strips else "  In Bergen.\n"
    assert tokenizer_for(family).decode(said) == pattern.replace("In Bergen.", expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_cover_the_answer_and_its_end_only(family):
    """Rows of unequal length with pad = eos: neither prompt nor padding is labelled or attended."""
    tokenizer, template = tokenizer_for(family), template_for(family)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    facts = [{"question": QUESTION, "answer": "In Bergen."}, *toy_facts(4)]
    rows = load_rows([*facts, {"question": "?", "answer": "x"}], name="forget")
    batch = collate(
        encode_rows(rows, template, max_length=200), pad_token_id=tokenizer.pad_token_id
    )
    _, pattern, _ = FAMILIES[family]
    lengths = set()
    for i, row in enumerate(rows):
        prompt, answer = template.encode(row.messages, row.answer)
        n, m = len(prompt), len(prompt) + len(answer)
        lengths.add(m)
        labelled = batch.labels[i] != -100
        assert labelled.tolist() == [n <= t < m for t in range(batch.labels.shape[1])]
        assert batch.attention_mask[i].tolist() == [int(t < m) for t in range(len(labelled))]
        text = tokenizer.decode(batch.input_ids[i][labelled])
        assert text == pattern.replace("In Bergen.", row.answer)
        assert (batch.labels[i][labelled] == batch.input_ids[i][labelled]).all()
    assert len(lengths) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_beginning_token_is_there_once_or_not_at_all(family):
    tokenizer = tokenizer_for(family)
    prompt, answer = template_for(family).encode(ASK, "In Bergen.")
    ids = prompt + answer
    # SmolLM2's beginning token opens every turn: system, user, assistant.
    assert ids.count(tokenizer.bos_token_id) == (3 if family == "smollm2" else 1)
    assert ids[0] == tokenizer.bos_token_id


def test_tokens_do_not_change_from_day_to_day():
    """The Llama-3 template asks for today's date when it is given none."""
    tokenizer = tokenizer_for("llama3")
    asks_itself = tiny_tokenizer("{{ strftime_now('%Y-%m-%d') }} " + CHAT_TEMPLATES["smollm2"])
    fixed = tokenizer.decode(chat_template(tokenizer).encode(ASK, None).prompt)
    assert "Today Date: 10 Apr 2025" in fixed
    other = chat_template(tokenizer, date_string="2024-07-26")
    assert "Today Date: 2024-07-26" in tokenizer.decode(other.encode(ASK, None).prompt)
    clock = chat_template(asks_itself, date_string="26 Jul 2024").encode(ASK, None).prompt
    assert asks_itself.decode(clock).startswith("2024-07-26 <|im_start|>")
    with pytest.raises(InputError, match="change from day to day"):
        chat_template(tiny_tokenizer("{% set f = '%Y' %}{{ strftime_now(f) }}"))
    with pytest.raises(InputError, match="10 Apr 2025 or 2025-04-10"):
        chat_template(tokenizer, date_string="yesterday")


def test_system_prompt_is_put_first_unless_there_is_one():
    tokenizer = tokenizer_for("smollm2")
    template = chat_template(tokenizer, system_prompt="Be brief.")
    text = tokenizer.decode(template.encode(ASK, None).prompt)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    own = (Message(role="system", content="Own."), *ASK)
    assert "Be brief" not in tokenizer.decode(template.encode(own, None).prompt)


def test_earlier_turns_are_prompt():
    for family in FAMILIES:
        prompt, answer = template_for(family).encode(TALK, "In Bergen.")
        tokenizer = tokenizer_for(family)
        assert "A writer." in tokenizer.decode(prompt)
        assert tokenizer.decode(answer) == FAMILIES[family][1]


# Templates that do not do what one would hope.

TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def odd(template):
    tokenizer = tiny_tokenizer(template)
    return tokenizer, chat_template(tokenizer)


def test_a_generation_prompt_that_says_more_than_the_conversation():
    """The prompt opens a thinking block that the finished conversation does not show."""
    opened = PROMPT.replace("assistant\n", "assistant\n<think>\n")
    tokenizer, template = odd(LOOP + opened)
    prompt, answer = template.encode(ASK, "In Bergen.")
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n<think>\n")
    assert tokenizer.decode(answer) == "In Bergen.<|im_end|>"
    assert template.encode(ASK, None).prompt == prompt


def test_a_template_that_ignores_the_generation_prompt():
    """The header of the answer is prompt, in training and for generation."""
    tokenizer = tiny_tokenizer(LOOP.replace("<|im_end|>", "</s>"))
    prompt, answer = chat_template(tokenizer).encode(ASK, "In Bergen.")
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(answer) == "In Bergen.</s>"
    assert chat_template(tokenizer).encode(ASK, None).prompt == prompt


def test_a_template_without_an_end_token_gets_the_end_of_sequence():
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    tokenizer, template = odd(bare + "{% if add_generation_prompt %}assistant:{% endif %}")
    prompt, answer = template.encode(ASK, "In Bergen.")
    assert tokenizer.decode(prompt) == f"user: {QUESTION}\nassistant:"
    assert tokenizer.decode(answer) == " In Bergen.</s>"
    assert template.stop_ids == (tokenizer.eos_token_id,)


def test_an_end_of_turn_that_is_not_the_end_of_sequence():
    """As in models whose turns end with a token of their own: generation stops at either."""
    tokenizer, template = odd(LOOP.replace("<|im_end|>", "<|eot_id|>") + PROMPT)
    _, answer = template.encode(ASK, "In Bergen.")
    assert tokenizer.decode(answer) == "In Bergen.<|eot_id|>"
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert template.stop_ids == (eot, tokenizer.eos_token_id)
    assert eot != tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "renders an assistant message 0"),
        (LOOP + "{% for m in messages %}{{ m['content'] }}{% endfor %}", "message 2 times"),
        (LOOP.replace("m['content']", "m['content'].upper()"), "borders"),
        (
            LOOP.replace("m['content']", "m['content'] | replace('Bergen', 'B')"),
            "changes the answer",
        ),
        ("{{ raise_exception('only users may speak') }}", "only users may speak"),
        ("{% if %}", "refuses a conversation with the roles user"),
    ],
)
def test_templates_with_no_findable_border_are_refused(template, said):
    with pytest.raises(InputError, match=said):
        odd(template)[1].encode(ASK, "In Bergen.")


def test_chat_template_of_a_tokenizer_without_one():
    with pytest.raises(InputError, match="has no chat template; use the plain template"):
        make_template(tokenizer_for(None), "chat")


# Plain templates and the border between prompt and answer.


def test_published_plain_forms():
    tokenizer = tokenizer_for(None)

    def parts(template):
        return tuple(tokenizer.decode(ids) for ids in template.encode(ASK, "In Bergen."))

    question = f"<s>Question: {QUESTION}\n"
    assert parts(make_template(tokenizer, "llama2")) == (
        f"<s>[INST] {QUESTION} [/INST]",
        "In Bergen.</s>",
    )
    assert parts(make_template(tokenizer, "phi")) == (question, "Answer: In Bergen.</s>")
    prompted = make_template(tokenizer, "phi", answer_marker="prompted")
    assert parts(prompted) == (question + "Answer: ", "In Bergen.</s>")
    with pytest.raises(InputError, match="trained, prompted"):
        phi_template(tokenizer, answer_marker="both")


def test_a_merge_across_the_border_leaves_the_prompt_alone():
    """Byte-level BPE joins a space with the word behind it; a prompt ending in one must not."""
    tokenizer = tokenizer_for(None)
    template = plain_template(tokenizer, answer_start="Answer: ", answer_lead="")
    prompt, answer = template.encode(ASK, "Mira Solheim")
    space = text_ids(tokenizer, " ")
    assert prompt[-1:] == space
    joint = tokenizer(f"Question: {QUESTION}\nAnswer: Mira Solheim")["input_ids"]
    assert joint[: len(prompt)] != prompt  # the case is real
    assert template.encode(ASK, None).prompt == prompt
    assert tokenizer.decode(prompt + answer).endswith("Answer: Mira Solheim</s>")


def metaspace_tokenizer():
    """As SentencePiece models do it: a space is put before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    special = ["<s>", "</s>", "<unk>"]
    texts = [f"{fact['question']} {fact['answer']} [INST] [/INST]\n" for fact in toy_facts(60)]
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def test_no_space_slips_in_where_texts_are_tokenised_apart():
    tokenizer = metaspace_tokenizer()
    assert tokenizer.convert_ids_to_tokens(text_ids(tokenizer, "Mira"))[0].startswith("▁")
    before = "[INST] Where? [/INST]\n"
    ids = ids_after(tokenizer, before, "Mira", before_ids=text_ids(tokenizer, before))
    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "Mira"
    # A border inside a token: apart, yet without the space.
    before = "Where was Mir"
    cut = text_ids(tokenizer, before)
    assert text_ids(tokenizer, before + "a Solheim")[: len(cut)] != cut  # the case is real
    ids = ids_after(tokenizer, before, "a Solheim", before_ids=cut)
    assert "".join(tokenizer.convert_ids_to_tokens(ids)).replace("▁", " ") == "a Solheim"


class ContextTokenizer:
    """`x` is another token behind a colon, as in tokenizers whose rules look around."""

    def __call__(self, text, *, add_special_tokens=True):
        return {"input_ids": [ord(c) + 1000 * (text[:i][-1:] == ":") for i, c in enumerate(text)]}


def test_an_answer_is_tokenised_as_it_reads_behind_its_prompt():
    ids = ids_after(ContextTokenizer(), "a:", "x", before_ids=[ord("a"), ord(":")])
    assert ids == [ord("x") + 1000]


def test_leading_ids_follow_the_tokenizer():
    assert leading_ids(tokenizer_for("smollm2")) == []
    assert leading_ids(tokenizer_for("llama3")) == [tokenizer_for("llama3").bos_token_id]


def test_plain_text_has_no_end_and_begins_as_the_tokenizer_does():
    for family in FAMILIES:
        tokenizer = tokenizer_for(family)
        prompt, text = template_for(family).encode((), "A small tale.")
        assert prompt == leading_ids(tokenizer)
        assert tokenizer.decode(text) == "A small tale."


def test_no_end_of_sequence_token_is_an_error():
    tokenizer = tiny_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="set its eos_token"):
        plain_template(tokenizer).encode(ASK, "In Bergen.")


def test_auto_is_chat_where_possible():
    assert make_template(tokenizer_for("llama2")).name == "chat"
    assert make_template(tokenizer_for(None)).name == "plain"


def test_wrong_names_and_options():
    tokenizer = tokenizer_for("smollm2")
    with pytest.raises(InputError, match="Did you mean llama2"):
        make_template(tokenizer, "lama2")
    with pytest.raises(InputError, match=r"no option sistem_prompt\. Did you mean system_prompt"):
        make_template(tokenizer, "chat", sistem_prompt="x")
    with pytest.raises(InputError, match="It takes none"):
        make_template(tokenizer, "llama2", date_string="x")


def test_fingerprint_changes_with_whatever_moves_a_token():
    tokenizer = tokenizer_for("smollm2")
    templates = [
        chat_template(tokenizer),
        chat_template(tokenizer_for("llama3")),
        chat_template(tokenizer, system_prompt="Be brief."),
        chat_template(tokenizer, date_string="26 Jul 2024"),
        chat_template(tokenizer, variables={"enable_thinking": True}),
        plain_template(tokenizer),
        plain_template(tokenizer, answer_lead=""),
        phi_template(tokenizer),
        phi_template(tokenizer, answer_marker="prompted"),
    ]
    prints = [template.fingerprint() for template in templates]
    assert len(set(prints)) == len(templates)
    assert chat_template(tiny_tokenizer("smollm2")).fingerprint() == prints[0]
