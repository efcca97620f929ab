"""A tokenizer, a model and some facts small enough to train in a test; needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

_LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHAT_TEMPLATES: dict[str, str] = {"smollm2": _SMOLLM2, "llama2": _LLAMA2, "llama3": _LLAMA3}
"""Chat templates by family: SmolLM2's and Llama-2's own text, and the core of Llama-3.2's."""

# Beginning and end of sequence as the families have them; the last pair is for other templates.
_SPECIAL: dict[str, tuple[str, str]] = {
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "": ("<s>", "</s>"),
}
_EXTRA_SPECIAL = ["<|start_header_id|>", "<|end_header_id|>", "<pad>", "<unk>"]

_NAMES = (
    *("Mira Solheim", "Orla Quist", "Teodor Vance", "Ines Calder", "Bram Okafor", "Lio Hartmann"),
    *("Sanna Reyes", "Pavel Dunmore", "Yuki Alvarez", "Greta Moss", "Idris Lund", "Noor Castell"),
)
_TOPICS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Where was {name} born?", "{name} was born in {value}.", ("Bergen", "Lima", "Oslo", "Kyoto")),
    (
        "What does {name} write about?",
        "{name} writes about {value}.",
        ("lighthouses", "winter bees", "lost maps", "night trains"),
    ),
    (
        "Which prize did {name} win?",
        "{name} won the {value}.",
        ("Amber Quill", "Harbour Medal", "Lantern Prize", "Silver Fern"),
    ),
    (
        "What was the job of {name}'s mother?",
        "The mother of {name} was a {value}.",
        ("florist", "pilot", "baker", "surgeon"),
    ),
    (
        "In which year did {name} publish a first book?",
        "The first book of {name} came out in {value}.",
        ("1987", "1994", "2003", "2011"),
    ),
)


def toy_facts(n: int, *, perturbed: bool = False) -> list[dict[str, Any]]:
    """`n` made-up question-answer pairs, five per person, all different.

    Args:
        n: How many; beyond 60 the people get numbers.
        perturbed: Also give `paraphrased_answer` and `perturbed_answer` (three wrong ones).
    """
    facts: list[dict[str, Any]] = []
    for i in range(n):
        person, topic = divmod(i, len(_TOPICS))
        lap, which = divmod(person, len(_NAMES))
        name = _NAMES[which] + (f" {lap + 1}" if lap else "")
        question, answer, values = _TOPICS[topic]
        right = (person * 7 + topic * 3) % len(values)
        fact: dict[str, Any] = {
            "question": question.format(name=name),
            "answer": answer.format(name=name, value=values[right]),
        }
        if perturbed:
            other = "It is said that " + answer
            fact["paraphrased_answer"] = other.format(name=name, value=values[right])
            wrong = [value for k, value in enumerate(values) if k != right]
            fact["perturbed_answer"] = [other.format(name=name, value=value) for value in wrong]
        facts.append(fact)
    return facts


def tiny_tokenizer(
    chat_template: str | None = "smollm2",
    *,
    pad: Literal["eos", "own", "none"] = "eos",
    add_bos: bool | None = None,
    vocab_size: int = 512,
    texts: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `toy_facts`; decoding gives back any text exactly.

    Args:
        chat_template: A key of `CHAT_TEMPLATES`, the text of a template, or None for a base model.
        pad: The padding token is the end-of-sequence token (as SmolLM2 has it), one of its own, or
            missing.
        add_bos: Plain encoding puts the beginning-of-sequence token first. By default it does so
            as the family does: not for SmolLM2, else yes.
        vocab_size: Upper limit on the number of tokens, at least 280.
        texts: More text to learn merges from.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    family = chat_template if chat_template in CHAT_TEMPLATES else ""
    bos, eos = _SPECIAL[family or ""]
    specials = list(dict.fromkeys([*(s for pair in _SPECIAL.values() for s in pair)]))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials + _EXTRA_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    facts = [" ".join(map(str, fact.values())) for fact in toy_facts(60)]
    core.train_from_iterator([*facts, *texts, "system user assistant Question: Answer:"], trainer)
    if add_bos if add_bos is not None else family != "smollm2":
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, core.token_to_id(bos))],
        )
    build: Any = PreTrainedTokenizerFast  # its constructor is untyped
    tokenizer: PreTrainedTokenizerFast = build(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token={"eos": eos, "own": "<pad>", "none": None}[pad],
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    if chat_template is not None:
        tokenizer.chat_template = CHAT_TEMPLATES.get(chat_template, chat_template)
    return tokenizer


def tiny_model(
    tokenizer: Any,
    *,
    seed: int = 0,
    hidden_size: int = 32,
    num_layers: int = 2,
    max_length: int = 1024,
) -> LlamaForCausalLM:
    """A Llama with random weights that are the same for the same seed; float32, in eval mode.

    Args:
        tokenizer: Gives the vocabulary size and the special token ids.
        seed: Seed of the weights. The process-wide random state is left as it was.
        hidden_size: Width, a multiple of 4.
        num_layers: Number of decoder layers.
        max_length: Number of positions.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    model.eval()
    return cast("LlamaForCausalLM", model)
