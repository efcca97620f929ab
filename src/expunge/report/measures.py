"""Names, units and directions of the numbers in a report, for people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from expunge.core.results import Better, ForgetQuality, Score

FORGET_ROUGE: Final = "forget/rouge_l_recall"
FORGET_PROBABILITY: Final = "forget/probability"
DISTANCE_KEY: Final = "forget_quality_distance"
"""Key under which tables show the KS distance D; result files keep it inside `forget_quality`."""

_PROBES: Final = {
    "forget": "Forget set",
    "retain": "Retain set",
    "real_authors": "Real authors",
    "world_facts": "World facts",
    "holdout": "Holdout set",
    "neighbor": "Neighbors",
    "target": "Facts to forget",
    "related": "Related facts",
    "reconstruction": "Reconstruction",
    "unrelated": "Unrelated facts",
    "truthfulqa": "TruthfulQA",
    "verbmem": "Verbatim memory",
    "knowmem_forget": "Knowledge to forget",
    "knowmem_retain": "Knowledge to keep",
    "privleak_forget": "Texts to forget",
    "privleak_retain": "Texts to keep",
    "privleak_holdout": "Holdout texts",
    "lm_eval": "General ability",
    "": "Over all sets",
}
_TASK: Final = re.compile(r"(task|request)_0*(\d+)")

_NAMES: Final = {
    "rouge_l_recall": "ROUGE-L recall",
    "rouge_1_recall": "ROUGE-1 recall",
    "rouge_l_f1": "ROUGE-L F1",
    "verbmem": "VerbMem",
    "knowmem": "KnowMem",
    "utilpres": "UtilPres",
    "probability": "Probability",
    "truth_ratio": "Truth ratio",
    "truth_ratio_closer_look": "Truth ratio, Closer Look form",
    "cosine_similarity": "Cosine similarity",
    "entailment_score": "Entailment score",
    "exact_memorization": "Exact memorization",
    "extraction_strength": "Extraction strength",
    "loss_gap": "Loss gap, signed",
    "absolute_loss_gap": "Loss gap, absolute",
    "token_entropy": "Token entropy",
    "repetition": "Repetition",
    "perplexity": "Perplexity",
    "clean_probability": "Not gibberish",
    "generated_tokens": "Generated tokens",
    "model_utility": "Model utility",
    "model_utility_9": "Model utility, nine values",
    "model_utility_cl": "Model utility, eighteen values",
    "model_utility_retain": "Model utility, retain set",
    "unrelated_utility": "Utility on unrelated facts",
    "forget_quality": "Forget quality, p-value",
    DISTANCE_KEY: "Forget quality, KS distance D",
    "forget_efficacy": "Forget efficacy",
    "privleak": "PrivLeak",
    "mia_loss": "Attack by loss",
    "mia_zlib": "Attack by loss over zlib length",
    "mia_min_k": "Attack by Min-K%",
    "mia_min_k_plus_plus": "Attack by Min-K%++",
    "mia_gradnorm": "Attack by gradient norm",
    "mia_reference": "Attack by a reference model",
    "mia_lowercase": "Attack by lower-cased text",
    "mia_retain_min_40": "Attack by Min-40% on the retain set",
    "forget_loss_gap_median": "Loss gap on the forget set, median",
    "forget_loss_gap_max": "Loss gap on the forget set, largest",
    "retain_loss_gap_median": "Loss gap on the retain set, median",
    "retain_loss_gap_max": "Loss gap on the retain set, largest",
    "gradnorm": "Gradient norm",
    "update_distance": "Distance of the update",
    "arc_challenge": "ARC Challenge",
    "mmlu": "MMLU",
    "truthfulqa_mc1": "TruthfulQA MC1",
    "triviaqa": "TriviaQA",
    "gsm8k": "GSM8K",
    "wmdp_bio": "WMDP biology",
    "wmdp_cyber": "WMDP cybersecurity",
    "wmdp_chem": "WMDP chemistry",
}
_MIN_K: Final = re.compile(r"mia_min_(\d+)")

_UTILITY_OF: Final = (
    "ROUGE-L recall, probability and truth ratio on the retain set, real authors and world facts"
)
_CLOSER_LOOK: Final = "token entropy, cosine similarity and entailment score"
_WMDP: Final = (
    "share of multiple-choice questions answered right; 0.25 is guessing. Below that is no better: "
    "a model that avoids the right answer still knows it"
)
_ATTACK: Final = (
    "AUC of telling the forget set from unseen text by {}; 0 to 1. At 0.5 it cannot be told. "
    "Above, it still looks like training data; below, it looks less familiar than unseen text. "
    "Both leak: over-unlearning is visible as well"
)
_GAP: Final = (
    "loss per token on a sample compared with the retain model's, in nats; {}. 0 is the level of a "
    "model that never saw the forget set"
)

_EXPLANATIONS: Final = {
    "rouge_l_recall": "share of the true answer's words that the generated answer has, in order; "
    "0 to 1. It says nothing about wrong words in between",
    "rouge_1_recall": "share of the true answer's words that the generated answer has, in any "
    "order; 0 to 1",
    "rouge_l_f1": "words that the generated and the true text have in common, in order, relative "
    "to the length of both. MUSE prints it times 100",
    "verbmem": "how far the model continues a text to be forgotten word for word, ROUGE-L F1 times "
    "100",
    "knowmem": "how well the model answers questions about texts to be forgotten, ROUGE-L F1 times "
    "100",
    "utilpres": "how well the model answers questions about texts to be kept, ROUGE-L F1 times 100",
    "probability": "probability the model gives the true answer, per token; 0 to 1. For real "
    "authors and world facts it is taken relative to the wrong options",
    "truth_ratio": "how a wrong answer's probability compares with the right one's, per token; "
    "0 to 1. On the forget set 1 means that both are equally likely, elsewhere 1 means that the "
    "wrong answers are far less likely",
    "truth_ratio_closer_look": "one minus the truth ratio of the forget set; 0 to 1, and 1 where "
    "right and wrong answers are told apart with certainty. Forget efficacy takes this form",
    "cosine_similarity": "cosine of sentence embeddings of the generated and the original answer, "
    "0 where it is negative; 0 to 1. It notices the same content in other words",
    "entailment_score": "share of answers of which a classifier says that one of generated and "
    "true answer follows from the other; 0 to 1",
    "exact_memorization": "share of the true answer's tokens that the model would say next, given "
    "the true answer up to there; 0 to 1",
    "extraction_strength": "share of the true answer that the model completes word for word from "
    "the shortest beginning that suffices; 0 to 1",
    "loss_gap": _GAP.format("the mean, in which gaps of both signs cancel out"),
    "absolute_loss_gap": _GAP.format("the mean size, whatever the sign"),
    "token_entropy": "how varied the tokens of an answer are, 0 to 1; 1 where all differ, lower "
    "the more it repeats itself",
    "repetition": "share of four-word pieces of an answer that were in it before; 0 to 1",
    "perplexity": "how surprising the generated answer is to the base model, per token; 1 or more. "
    "High is gibberish, but very low is repetition",
    "clean_probability": "probability by a classifier that the generated answer is no gibberish; "
    "0 to 1",
    "generated_tokens": "mean length of the generated answers. ROUGE recall rewards an answer that "
    "never ends, so look at both",
    "model_utility": f"harmonic mean of {_UTILITY_OF}; 0 to 1",
    "model_utility_9": f"harmonic mean of {_UTILITY_OF}; 0 to 1",
    "model_utility_cl": f"harmonic mean of eighteen values: {_UTILITY_OF}, and {_CLOSER_LOOK} on "
    "the same three sets; 0 to 1. Not comparable with the one of nine values, and usually higher",
    "model_utility_retain": "harmonic mean of the six values on the retain set: ROUGE-L recall, "
    f"probability, truth ratio, {_CLOSER_LOOK}; 0 to 1",
    "unrelated_utility": "harmonic mean of ROUGE-L recall, probability and truth ratio on facts "
    "that have nothing to do with the forgotten ones; 0 to 1",
    "forget_quality": "p-value of a Kolmogorov-Smirnov test between the truth ratios of this model "
    "and of the retain model on the forget set; 0 to 1. Above 0.05 the test finds no difference; "
    "a higher p-value is then no better than a lower one, and none is evidence of sameness",
    DISTANCE_KEY: "the distance that this test looks at; 0 (same distribution) to 1 (no overlap), "
    "with the 95% interval of the true distance. Unlike the p-value it can be compared between "
    "different n",
    "forget_efficacy": "one minus the mean of five measures of memory on the forget set: ROUGE-L "
    "recall, probability, truth ratio in Closer Look's form, cosine similarity and entailment "
    "score; 0 to 1. It needs no retain model, and cannot tell too little from too much",
    "privleak": "AUC of the Min-40% attack relative to the retain model's, in percent; 0 is best. "
    "Negative: the forget set still looks like training data. Positive: it looks less familiar "
    "than to a model that never saw it. Both leak: over-unlearning is visible as well",
    "mia_loss": _ATTACK.format("the loss per token"),
    "mia_zlib": _ATTACK.format("the loss relative to how well the text can be compressed"),
    "mia_min_k": _ATTACK.format("its least likely tokens"),
    "mia_min_k_plus_plus": _ATTACK.format(
        "its least likely tokens, relative to what else the model found likely there"
    ),
    "mia_gradnorm": _ATTACK.format("the size of the loss's gradient"),
    "mia_reference": _ATTACK.format("the loss relative to that of a reference model"),
    "mia_lowercase": _ATTACK.format("the loss relative to that of the text in lower case"),
    "mia_retain_min_40": "the same attack on texts that were trained on and are to be kept: how "
    "far such an attack can be trusted; 0 to 1",
    "forget_loss_gap_median": _GAP.format("the median size over the forget set"),
    "forget_loss_gap_max": _GAP.format("the largest size in the forget set"),
    "retain_loss_gap_median": _GAP.format("the median size over the retain set"),
    "retain_loss_gap_max": _GAP.format("the largest size in the retain set"),
    "gradnorm": "norm of the loss's gradient on a sample",
    "update_distance": "Euclidean distance between the weights before and after unlearning. It "
    "says how much was changed, not whether it was the right thing",
    "arc_challenge": "share of science questions answered right",
    "mmlu": "share of exam questions answered right, over 57 subjects; 0.25 is guessing",
    "truthfulqa_mc1": "share of questions with popular wrong answers answered right",
    "triviaqa": "share of trivia questions answered word for word",
    "gsm8k": "share of school arithmetic problems solved",
    "wmdp_bio": _WMDP,
    "wmdp_cyber": _WMDP,
    "wmdp_chem": _WMDP,
}

_MARKS: Final[dict[Better, tuple[str, str]]] = {
    "higher": ("↑", "higher is better"),
    "lower": ("↓", "lower is better"),
    "closer_to_retain": ("→", "closer to the retain model is better"),
    "closer_to_zero": ("→ 0", "closer to 0 is better, from either side"),
    "closer_to_half": ("→ 0.5", "closer to 0.5 is better; both sides leak"),
    "none": ("", "no better direction"),
}


class Mark(NamedTuple):
    """A direction as an arrow and in words."""

    arrow: str
    words: str


def mark(better: Better, key: str = "") -> Mark:
    """Arrow and words of a direction, for the score under `key`."""
    arrow, words = _MARKS[better]
    if key == "forget_quality":
        # A p-value of a test for a difference is no degree of sameness.
        words = "above 0.05: no difference found"
    elif key == "privleak":
        words = "closer to 0 is better; both sides leak"
    elif better == "lower" and key.startswith("forget/"):
        # Below the level of a model that never saw the data, removal itself becomes visible.
        words = "lower is better, down to the retain model's level"
    return Mark(arrow, words)


def split_key(key: str) -> tuple[str, str]:
    """Probe and metric of a score key; the probe of an aggregate is ""."""
    probe, _, name = key.rpartition("/")
    return probe, name


def probe_label(probe: str) -> str:
    """Readable name of a probe: "Forget set"."""
    if task := _TASK.fullmatch(probe):
        return f"{task[1].capitalize()} {task[2]}"
    return _PROBES.get(probe, probe)


def metric_label(name: str) -> str:
    """Readable name of a metric: "ROUGE-L recall"."""
    if share := _MIN_K.fullmatch(name):
        return f"Attack by Min-{share[1]}%"
    return _NAMES.get(name, name.replace("_", " ").capitalize())


def column_label(key: str) -> str:
    """Readable name of a score with the set it is about: "ROUGE-L recall, forget set"."""
    probe, name = split_key(key)
    return f"{metric_label(name)}, {probe_label(probe).lower()}" if probe else metric_label(name)


def metric_explanation(name: str) -> str:
    """What a metric means, as a clause; "" for one this report does not know."""
    if share := _MIN_K.fullmatch(name):
        return _ATTACK.format(f"its least likely {share[1]}% of tokens")
    return _EXPLANATIONS.get(name, "")


def ordered(keys: Iterable[str]) -> list[str]:
    """Score keys, each once: aggregates first, then forget, retain and the other probes."""
    probes, names = ["", *(probe for probe in _PROBES if probe)], list(_NAMES)

    def place(key: str) -> tuple[int, int, int]:
        probe, name = split_key(key)
        task = _TASK.fullmatch(probe)
        return (
            probes.index(probe) if probe in probes else len(probes),
            int(task[2]) if task else 0,
            _AGGREGATES_FIRST.index(name)
            if name in _AGGREGATES_FIRST
            else len(_AGGREGATES_FIRST) + (names.index(name) if name in names else len(names)),
        )

    return sorted(dict.fromkeys(keys), key=place)


_AGGREGATES_FIRST: Final = ("model_utility", "forget_quality", DISTANCE_KEY)


def distance_score(test: ForgetQuality) -> Score:
    """The KS distance of a forget quality test as a score of its own, with its interval."""
    reason = None if test.statistic is not None else test.reason or "the test gave no distance"
    return Score(
        value=test.statistic,
        low=test.low,
        high=test.high,
        n=test.n,
        better="lower",
        reason=reason,
        unit="KS distance",
    )


NO_LEAK: Final = "no leak detected"
STILL_FAMILIAR: Final = "leaks: still familiar"
TOO_UNFAMILIAR: Final = "leaks: too unfamiliar"

_IDEALS: Final[dict[Better, float]] = {"closer_to_half": 0.5, "closer_to_zero": 0.0}


def leak(score: Score) -> str:
    """What a score with two bad sides gives away, one of the three above; "" for other scores.

    The forget set can be told from unseen text where the 95% interval leaves out the ideal, one
    half for an AUC and 0 for PrivLeak. An attacker who knows that it looks too unfamiliar only has
    to turn the attack round.
    """
    ideal = _IDEALS.get(score.better)
    if score.value is None or score.two_sided is None or score.low is None or score.high is None:
        return ""
    if ideal is None:
        return ""
    if score.low <= ideal <= score.high:
        return NO_LEAK
    # PrivLeak falls, and an AUC rises, as the forget set looks more familiar.
    familiar = (score.value > ideal) == (score.better == "closer_to_half")
    return STILL_FAMILIAR if familiar else TOO_UNFAMILIAR
