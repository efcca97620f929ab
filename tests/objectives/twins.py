"""Slow, obvious float64 twins: loops over rows and tokens, one equation each, nothing of ours.

A position t of a row holds a token and predicts the one at t + 1. Streams are plain lists of rows;
rows that only fill a batch are dropped by every twin.
"""

import math
from typing import NamedTuple

import torch

from expunge.testing.fake_outputs import fake_control, fake_row

DTYPE = torch.float64
PAD = 2  # positions behind the longest row
FILLER = 6  # this row of every stream only fills the batch


class Row(NamedTuple):
    """One padded row; what is behind its real tokens is random."""

    index: int
    ids: list
    labels: list
    real: list
    logits: torch.Tensor
    ref_logits: torch.Tensor
    hidden: torch.Tensor
    activations: torch.Tensor
    ref_activations: torch.Tensor

    @property
    def counts(self):
        """Whether the row takes part at all."""
        return self.index != FILLER


class World(NamedTuple):
    """Rows of every stream, and what a method keeps between steps."""

    streams: dict
    centre: torch.Tensor
    past: torch.Tensor
    control: torch.Tensor

    def __getattr__(self, name):
        try:
            return self.streams[name]
        except KeyError:
            raise AttributeError(name) from None


# Made-up rows -------------------------------------------------------------------------------------

# Length and prompt: usual, one-token answer, plain text, no label, only label lost in the shift,
# usual, filler.
SHAPES = {
    "forget": [(7, 3), (5, 4), (6, 0), (4, 4), (1, 0), (8, 2), (5, 1)],
    "retain": [(6, 2), (4, 0), (5, 5), (7, 6), (1, 0), (5, 2), (9, 1)],
    "alternate": [(5, 3), (6, 5), (4, 0), (7, 3), (3, 1), (6, 2), (4, 1)],
    "retain_alternate": [(4, 2), (5, 0), (6, 3), (3, 2), (4, 1), (5, 3), (6, 2)],
    "proxy": [(8, 3), (6, 4), (5, 0), (6, 2), (4, 1), (4, 2), (5, 1)],
    **{
        name: [(5, 3), (6, 4), (4, 0), (7, 7), (1, 0), (6, 3), (5, 2)]
        for name in ("mismatch", "mismatch_2", "mismatch_3", "mismatch_4", "mismatch_5")
    },
}
LEAVES = ("logits", "hidden", "activations")


def made_up(vocabulary=13, dimension=5, seed=0):
    """A world whose padding is random too, with leaves that take gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=DTYPE)

    streams = {}
    for number, (name, shapes) in enumerate(SHAPES.items()):
        length = max(size for size, _ in shapes) + PAD
        streams[name] = []
        for index, (size, prompt) in enumerate(shapes):
            fake = fake_row(size, prompt, seed * 977 + number * 31 + index, vocabulary=vocabulary)
            missing = length - size
            tensors = {
                field: torch.cat([getattr(fake, field), normal(missing, wide)])
                for field, wide in (
                    ("logits", vocabulary),
                    ("ref_logits", vocabulary),
                    ("hidden", dimension),
                    ("activations", dimension),
                    ("ref_activations", dimension),
                )
            }
            for leaf in LEAVES:
                tensors[leaf].requires_grad_()
            streams[name].append(
                Row(
                    index=index,
                    ids=fake.input_ids.tolist() + [0] * missing,
                    labels=fake.labels.tolist() + [-100] * missing,
                    real=[True] * size + [False] * missing,
                    **tensors,
                )
            )
    return World(
        streams=streams,
        centre=normal(dimension),
        past=normal(len(SHAPES["forget"]), dimension),
        control=fake_control(seed),
    )


# Words --------------------------------------------------------------------------------------------


def log_softmax(scores):
    top = scores.max().detach()
    return scores - top - (scores - top).exp().sum().log()


def softmax(scores):
    return log_softmax(scores).exp()


def softplus(a):
    return torch.log(1 + torch.exp(-abs(a))) + a * (a > 0)


def sigmoid(a):
    return 1 / (1 + torch.exp(-a))


def total(values):
    return sum(values, torch.zeros((), dtype=DTYPE))


def mean(values):
    return total(values) / max(1, len(values))


def cosine(a, b):
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def predicting(row):
    """P(x) seen from where the prediction is made: t with a label at t + 1."""
    return [t for t in range(len(row.labels) - 1) if row.labels[t + 1] != -100]


def nll(row, t, logits=None):
    scores = (row.logits if logits is None else logits)[t]
    return -log_softmax(scores)[row.labels[t + 1]]


def S(row):
    return total([nll(row, t) for t in predicting(row)])


def S0(row):
    return total([nll(row, t, row.ref_logits) for t in predicting(row)])


def A(row):
    return S(row) / len(predicting(row))


def scored(rows):
    return [row for row in rows if row.counts and predicting(row)]


def CE(rows):
    return total([S(row) for row in scored(rows)]) / sum(len(predicting(r)) for r in scored(rows))


def CE0(rows):
    return total([S0(row) for row in scored(rows)]) / sum(len(predicting(r)) for r in scored(rows))


def at(row, positions, *, has_next):
    """Positions of a row by name; `has_next` leaves out those without a following token."""
    length = len(row.labels)
    if positions == "labels":
        return predicting(row)
    if positions == "unshifted":
        return [t for t in range(length) if row.labels[t] != -100]
    if positions == "nonpad":
        return [
            t
            for t in range(length)
            if row.real[t] and (not has_next or (t + 1 < length and row.real[t + 1]))
        ]
    return list(range(length - 1 if has_next else length))


def averaged(rows, value, positions, *, has_next, average="tokens", keep=lambda row, t: True):
    """One number from `value(row, t)`, by the four ways to average."""
    lists = []
    for row in rows:
        if row.counts:
            chosen = [t for t in at(row, positions, has_next=has_next) if keep(row, t)]
            if chosen:
                lists.append([value(row, t) for t in chosen])
    if average == "tokens":
        return mean([v for values in lists for v in values])
    if average == "rows":
        return mean([mean(values) for values in lists])
    if average == "sums":
        return mean([total(values) for values in lists])
    # open-unlearning: a [B] tensor divided by a [B, 1] tensor, then the mean of all of it.
    return mean([total(a) / len(b) for a in lists for b in lists])


# Forget losses ------------------------------------------------------------------------------------


def ga(rows, **how):
    return averaged(rows, lambda row, t: -nll(row, t), "labels", has_next=True, **how)


def npo(row, beta):
    return 2 / beta * softplus(-beta * (S(row) - S0(row)))


def npo_muse(rows, beta):
    def value(row, t):
        gaps = [row.ref_logits[t][v] - row.logits[t][v] for v in range(len(row.logits[t]))]
        return mean([2 / beta * softplus(-beta * gap) for gap in gaps])

    return averaged(rows, value, "all", has_next=False)


def npo_wmdp(rows, beta):
    return 2 / beta * softplus(-beta * (CE(rows) - CE0(rows)))


def simnpo(row, beta, delta=0.0, gamma=0.0):
    """-2/beta log sigma(-beta/|y| log p - gamma), |y| counted before the shift."""
    labels = sum(label != -100 for label in row.labels)
    inside = beta * (S(row) / labels - delta) - gamma
    return -2 / beta * torch.log(sigmoid(inside))


def simnpo_muse(rows, beta, gamma):
    def value(row, t):
        return mean([2 / beta * softplus(-beta * (-v - gamma)) for v in row.logits[t]])

    return averaged(rows, value, "all", has_next=False)


def simnpo_wmdp(rows, beta):
    return 2 / beta * softplus(-beta * CE(rows))


def me(rows, direction, positions):
    def value(row, t):
        p = softmax(row.logits[t])
        size = len(p)
        if direction == "model_to_uniform":
            return total([v * torch.log(v * size) for v in p])
        return total([torch.log(1 / size / (v + 1e-12)) / size for v in p])

    return averaged(rows, value, positions, has_next=True)


def mismatch(streams, average="tokens"):
    rows = [row for stream in streams for row in stream]
    return averaged(rows, nll, "labels", has_next=True, average=average)


def wga(rows, beta):
    def value(row, t):
        return -(torch.exp(-nll(row, t)).detach() ** beta) * nll(row, t)

    return averaged(rows, value, "labels", has_next=True)


def satimp(rows, beta1, beta2):
    def value(row, t):
        p = torch.exp(-nll(row, t)).detach()
        return -(p**beta1) * (1 - p) ** beta2 * nll(row, t)

    return averaged(rows, value, "labels", has_next=True)


def ceu(rows, ignore_first):
    def keep(row, t):
        labelled = [u for u in range(len(row.labels)) if row.labels[u] != -100]
        return t + 1 not in labelled[:ignore_first]

    def value(row, t):
        others = [v for v in range(len(row.logits[t])) if v != row.labels[t + 1]]
        q = softmax(row.logits[t].detach()[others])
        log_p = log_softmax(row.logits[t])
        return -total([q[i] * log_p[v] for i, v in enumerate(others)])

    return averaged(rows, value, "labels", has_next=True, keep=keep)


def distilled(row, t, held_down, beta):
    lowered = row.ref_logits[t].clone()
    lowered[held_down] -= beta
    q, log_p = softmax(lowered), log_softmax(row.logits[t])
    return -total([q[v] * log_p[v] for v in range(len(q))])


def undial(rows, beta):
    return averaged(
        rows,
        lambda row, t: distilled(row, t, row.labels[t + 1], beta),
        "labels",
        has_next=True,
    )


def undial_ou(rows, beta):
    """A label of -100 indexes the vocabulary from its end, as Python does: entry V - 100."""
    return averaged(
        rows, lambda row, t: distilled(row, t, row.labels[t + 1], beta), "all", has_next=True
    )


def pdu(rows, positions):
    def value(row, t):
        scores = row.logits[t]
        return (max(scores) - mean(list(scores))) ** 2

    return averaged(rows, value, positions, has_next=positions != "unshifted")


def rmu(rows, control, steering, *, positions="unshifted", average="rows"):
    def value(row, t):
        pairs = zip(row.activations[t], control, strict=True)
        return mean([(h - steering * u) ** 2 for h, u in pairs])

    return averaged(rows, value, positions, has_next=False, average=average)


def dpo(row, other, beta, factor):
    return factor * softplus(-beta * ((S(row) - S0(row)) - (S(other) - S0(other))))


def pairs(first, second):
    """Rows of two streams with the same place, where the first one is scored."""
    return [(row, second[row.index]) for row in scored(first)]


def kto(forget, alternate, beta, g):
    both = pairs(forget, alternate)
    z = mean([S0(other) - S(other) for _, other in both]).detach()
    return 1 - 2 / beta * mean([g(z - beta * (S0(row) - S(row))) for row, _ in both])


# Retain terms -------------------------------------------------------------------------------------


def kl(rows, *, positions="nonpad", form="divergence", average="tokens"):
    def value(row, t):
        p0, log_p = softmax(row.ref_logits[t]), log_softmax(row.logits[t])
        if form == "cross_entropy":
            return -total([a * b for a, b in zip(p0, log_p, strict=True)])
        return total([a * (torch.log(a) - b) for a, b in zip(p0, log_p, strict=True)])

    return averaged(rows, value, positions, has_next=False, average=average)


def kl_muse(rows):
    """Raw logits r and l in the formula of the divergence, divided by the number of rows."""
    values = []
    for row in rows:
        if row.counts:
            for before, now in zip(row.ref_logits, row.logits, strict=True):
                both = zip(before, now, strict=True)
                values.append(total([math.exp(a) * (a - b) for a, b in both]))
    return total(values) / sum(row.counts for row in rows)


def ap(retain, other, beta):
    return mean([softplus(-beta * (S(b) - S(a))) / beta for a, b in pairs(retain, other)])


def act(rows, *, positions="unshifted", average="rows"):
    def value(row, t):
        both = zip(row.activations[t], row.ref_activations[t], strict=True)
        return mean([(h - h0) ** 2 for h, h0 in both])

    return averaged(rows, value, positions, has_next=False, average=average)


def uniform(rows, positions="nonpad"):
    def value(row, t):
        log_p = log_softmax(row.logits[t])
        return total([(-math.log(len(log_p)) - v) / len(log_p) for v in log_p])

    return averaged(rows, value, positions, has_next=False)


# Wrappers -----------------------------------------------------------------------------------------


def embedding(row, tokens="all"):
    chosen = [
        row.hidden[t]
        for t in range(len(row.labels))
        if (row.real[t] if tokens == "all" else row.labels[t] != -100)
    ]
    return total(chosen) / len(chosen)


def exponent(s, k=1.0, direction="entangled_less", temperature="multiply", transform="double_exp"):
    sign = -1 if direction == "entangled_less" else 1
    sharp = k if temperature == "multiply" else 1 / k
    return sharp * torch.exp(sign * s) if transform == "double_exp" else sharp * sign * s


def entangled(
    world, sample, *, reduce="sum", weight_grad=False, dataset=False, tokens="all", **options
):
    """sum_i w_i ell_i with w the softmax of the exponents over the scored rows."""
    rows = scored(world.forget)
    if dataset:  # softmax over the embeddings of the whole forget set, mean 1
        exponents = [exponent(cosine(e, world.centre), **options) for e in world.past]
        weights = [w * len(exponents) / len(rows) for w in softmax(torch.stack(exponents))]
        weights = [weights[row.index] for row in rows]
    else:
        exponents = [
            exponent(cosine(embedding(row, tokens), world.centre), **options) for row in rows
        ]
        weights = softmax(torch.stack(exponents))
    if not weight_grad:
        weights = [w.detach() for w in weights]
    if reduce == "mean":
        weights = [w / len(rows) for w in weights]
    return total([w * sample(row) for w, row in zip(weights, rows, strict=True)])


def contrast(world, *, reduce="mean", tokens="all"):
    """-log(exp s / (exp s + exp r)) for every scored row."""
    values = []
    for row in scored(world.forget):
        e = embedding(row, tokens)
        s, r = cosine(e, world.centre), cosine(e, world.past[row.index])
        values.append(-torch.log(torch.exp(s) / (torch.exp(s) + torch.exp(r))))
    return mean(values) if reduce == "mean" else total(values)


def token_efforts(world, rows, positions="labels", *, of=1, k=1.0, has_next=True):
    """Weight of every counted position by the hidden state of the token `of` places on; mean 1."""
    raw = {}
    for row in rows:
        if row.counts:
            for t in at(row, positions, has_next=has_next):
                s = cosine(row.hidden[t + of], world.centre)
                raw[id(row), t] = torch.exp(exponent(s, k)).detach()
    return {key: value / mean(list(raw.values())) for key, value in raw.items()}


def weighted_sums(row, weight):
    """S and S0 with every token counted as often as its weight says."""
    places = predicting(row)
    now = total([weight(row, t) * nll(row, t) for t in places])
    return now, total([weight(row, t) * nll(row, t, row.ref_logits) for t in places])


def penalty(world, mu, *, reduce="sum", grad=False, scale=A, initial=None):
    values = []
    for row in scored(world.forget):
        boundary = scale(world.proxy[row.index]) if initial is None else initial[row.index]
        gap = scale(row) - (boundary if grad else boundary.detach())
        values.append(gap if gap > 0 else gap * 0)
    return mu * (total(values) if reduce == "sum" else mean(values))


def empirical(world, sample, power):
    """(1/B) sum_i B w_i / (sum_j w_j) ell_i with w = 1 / (A^power + 1e-15)."""
    rows = scored(world.forget)
    weights = [1 / (A(row).detach() ** power + 1e-15) for row in rows]
    return total([w / total(weights) * sample(row) for w, row in zip(weights, rows, strict=True)])


def confidence(beta):
    return lambda row, t: torch.exp(-nll(row, t)).detach() ** beta


def saturation(beta1, beta2):
    def weight(row, t):
        p = torch.exp(-nll(row, t)).detach()
        return p**beta1 * (1 - p) ** beta2

    return weight
