"""Entanglement with the retain set: which forget samples count how much, and how they drift.

arXiv:2508.20443. The published text leaves several points open; every option below names the
reading it stands for, and `E-..` numbers point to `docs/explanation/egup.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from expunge.models.outputs import TokenOutputs

LAMBDA_C = 0.001  # tied to the default of mu, the only coefficient the paper writes down (E-07)


@dataclass(frozen=True, kw_only=True)
class EntanglementOptions:
    """Options of EGU, the entanglement-guided part of EGUP.

    Attributes:
        k: Sharpness of the softmax over the batch; 0 makes all weights equal.
        level: What is weighted: every `sample`, as in the paper, or every `token` of the answers by
            the similarity of its own hidden state with the retain centre. Token weights have mean 1
            over the label tokens of a step; in losses on whole sequences (NPO, DPO) they weigh the
            tokens inside the sequence's log-likelihood.
        direction: `entangled_less`: samples close to the retain set get less effort, as the method
            section derives; `entangled_more`: the abstract's wording (E-01).
        temperature: Whether k multiplies or divides the exponent (E-02).
        transform: `double_exp`: softmax of k exp(-s) as written; `single_exp`: softmax of -k s
            (E-03).
        reduce: Weights sum to 1 and the weighted losses are summed; `mean` divides by the batch
            size once more (E-04).
        scope: Rows that share one softmax: the whole optimizer step over all micro-batches and
            processes, one `micro_batch` of one process, or `dataset`: weights from stored
            similarities, mean 1 over the forget set (E-05).
        weight_grad: Let the gradient flow through the weights (E-06).
        lambda_c: Weight of the contrastive drift term; 0 leaves it out (E-07, E-17).
        contrast_reduce: Mean or sum of the drift term over the batch (E-15).
        centre_refresh: When the mean retain embedding is recomputed: once (`static`), every
            `epoch`, `every_n` steps, every `step` (the literal text), or as a moving average over
            retain batches (`batch_ema`) (E-12).
        refresh_every: Steps between refreshes with `every_n`.
        ema_decay: Share of the old centre kept with `batch_ema`.
        previous: What a sample's past is: its `last_visit`, the `previous_step`, or the `initial`
            model (E-13).
        embed_tokens: Tokens averaged into a sentence embedding: `all` real tokens or the `answer`.
        embed_layer: Hidden layer, -1 for the last after the final norm, 0 for the input embeddings.
    """

    k: Annotated[float, Ge(0)] = 1.0
    level: Literal["sample", "token"] = "sample"
    direction: Literal["entangled_less", "entangled_more"] = "entangled_less"
    temperature: Literal["multiply", "divide"] = "multiply"
    transform: Literal["double_exp", "single_exp"] = "double_exp"
    reduce: Literal["sum", "mean"] = "sum"
    scope: Literal["step", "micro_batch", "dataset"] = "step"
    weight_grad: bool = False
    lambda_c: Annotated[float, Ge(0)] = LAMBDA_C
    contrast_reduce: Literal["mean", "sum"] = "mean"
    centre_refresh: Literal["epoch", "static", "every_n", "step", "batch_ema"] = "epoch"
    refresh_every: Annotated[int, Gt(0)] = 10
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.9
    previous: Literal["last_visit", "previous_step", "initial"] = "last_visit"
    embed_tokens: Literal["all", "answer"] = "all"
    embed_layer: int = -1


def sentence_embedding(out: TokenOutputs, *, tokens: Literal["all", "answer"] = "all") -> Tensor:
    """Mean hidden state of each row over its real or its labelled tokens, float32, [B, D]."""
    assert out.hidden is not None, "sentence embeddings read hidden states"
    assert out.hidden_mask is not None, "hidden states come with their mask"
    mask = out.hidden_mask if tokens == "all" else out.label_mask
    assert mask is not None, "hidden states come with the mask of labelled tokens"
    hidden = out.hidden if out.hidden.dtype == torch.float64 else out.hidden.float()
    # A mask of the hidden states' own type: padding may hold anything but not-a-number.
    weights = mask.to(hidden.dtype)
    return (weights[..., None] * hidden).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)


def similarity(embeddings: Tensor, other: Tensor) -> Tensor:
    """Cosine similarity of each vector [..., D] with the matching one of `other`, [D] or alike."""
    return F.cosine_similarity(embeddings, other.expand_as(embeddings), dim=-1)


def effort(similarities: Tensor, options: EntanglementOptions) -> Tensor:
    """Exponent of each sample's weight, before the softmax over the batch, [B].

    With the defaults `k exp(-s)`: the less a sample resembles the retain set, the larger.
    """
    k = options.k
    if options.temperature == "divide":
        if k == 0:
            raise ValueError("k must be above 0 when temperature=divide")
        k = 1 / k
    sign = -1.0 if options.direction == "entangled_less" else 1.0
    if options.transform == "double_exp":
        return k * torch.exp(sign * similarities)
    return k * sign * similarities


def drift_contrast(similarities: Tensor, similarities_to_past: Tensor) -> Tensor:
    """Contrastive drift term `softplus(r - s)` of each sample, in nats, [B].

    -log(exp(s) / (exp(s) + exp(r))): the retain centre is the positive (s), the sample's own past
    the negative (r), so a step moves a sample away from where it was, less the further it has gone.
    """
    return F.softplus(similarities_to_past - similarities)


class EntanglementState:
    """Embeddings of the past and the retain centre; saved with the checkpoint.

    Args:
        options: The options of the method.
        num_forget: Rows of the forget set.
    """

    def __init__(self, options: EntanglementOptions, num_forget: int) -> None:
        self.options = options
        self.num_forget = num_forget
        self.centre: Tensor | None = None
        self.past: Tensor | None = None
        self.dataset_weights: Tensor | None = None

    def start(self, forget_embeddings: Tensor, centre: Tensor) -> None:
        """Fill the past from the start model, so that a first visit has one (E-13)."""
        self.past = forget_embeddings.detach().clone()
        self.refresh(centre, forget_embeddings)

    def refresh(self, centre: Tensor, forget_embeddings: Tensor | None = None) -> None:
        """Take a new retain centre [D]; with scope `dataset` also new weights from embeddings."""
        self.centre = centre.detach().clone()
        if self.options.scope == "dataset" and forget_embeddings is not None:
            exponents = effort(similarity(forget_embeddings, self.centre), self.options)
            self.dataset_weights = exponents.softmax(0) * len(exponents)

    def update_centre(self, batch_centre: Tensor) -> None:
        """Move the centre towards the mean embedding of one retain batch (`batch_ema`)."""
        assert self.centre is not None, "the state was not started"
        decay = self.options.ema_decay
        self.centre = decay * self.centre + (1 - decay) * batch_centre.detach()

    def remember(self, index: Tensor, embeddings: Tensor) -> None:
        """Store the embeddings [n, D] of the forget rows `index` [n] as their past."""
        assert self.past is not None, "the state was not started"
        self.past[index] = embeddings.detach().to(self.past.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to save; empty entries are left out."""
        state = {"centre": self.centre, "past": self.past, "dataset_weights": self.dataset_weights}
        return {name: value for name, value in state.items() if value is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` saved."""
        self.centre = state.get("centre")
        self.past = state.get("past")
        self.dataset_weights = state.get("dataset_weights")
