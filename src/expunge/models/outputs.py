"""The record of one forward pass on one stream; shift, masking and float32 happen only here.

Shape legend: B batch, L input tokens, T logit positions, V vocabulary, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Positions = Literal["labels", "unshifted", "nonpad", "all"]
"""Logit positions that a token loss averages over.

`labels` predict a labelled token; `unshifted` hold a labelled token, as losses on hidden states and
some released code have it; `nonpad` are all real tokens, prompt included; `all` also counts
padding, as several released trainers do, and so depends on how a batch happens to be padded.
"""


@dataclass(frozen=True, kw_only=True)
class TokenOutputs:
    """What a loss may look at. Position t holds the prediction made at t, of token t + 1.

    Attributes:
        logps: Log-probability of the label token, 0 where there is none, at least float32, [B, T].
        mask: Position predicts a labelled token, bool, [B, T].
        nonpad: Position holds a real token, bool, [B, T].
        predicts: Position predicts a real token, bool, [B, T].
        not_last: Position is not the last of the padded row, bool, [B, T].
        targets: Token that follows the position, 0 at the last one, [B, T].
        num_labels: Labels of each row counted before the shift, [B]. One more than `mask.sum(-1)`
            where the very first token carries a label (plain text), else equal.
        valid: Row takes part; rows that only fill a micro-batch do not, bool, [B].
        index: Index of each row in its stream, [B].
        columns: Input position of each logit position, [T].
        ref_logps: `logps` under the reference model, [B, T].
        logits: Raw logits, float32 (or wider), [B, T, V].
        ref_logits: `logits` of the reference model, [B, T, V].
        hidden: Hidden states of one layer for all input tokens, for sentence embeddings, [B, L, D].
        activations: Output of one decoder block at the logit positions, [B, T, D].
        ref_activations: `activations` of the reference model, [B, T, D].
        control: Unit vector that activations are steered to, [D].
        hidden_mask: Input token is real, bool, [B, L].
        label_mask: Input token carries a label, bool, [B, L].
    """

    logps: Tensor
    mask: Tensor
    nonpad: Tensor
    predicts: Tensor
    not_last: Tensor
    targets: Tensor
    num_labels: Tensor
    valid: Tensor
    index: Tensor
    columns: Tensor
    ref_logps: Tensor | None = None
    logits: Tensor | None = None
    ref_logits: Tensor | None = None
    hidden: Tensor | None = None
    activations: Tensor | None = None
    ref_activations: Tensor | None = None
    control: Tensor | None = None
    hidden_mask: Tensor | None = None
    label_mask: Tensor | None = None

    def positions(self, which: Positions) -> Tensor:
        """Mask of the logit positions called `which`, in valid rows only, bool, [B, T]."""
        if which == "unshifted":
            assert self.label_mask is not None, "the record has no mask of labelled tokens"
            chosen = self.label_mask[:, self.columns]
        elif which == "all":
            chosen = torch.ones_like(self.mask)
        else:
            chosen = self.mask if which == "labels" else self.nonpad
        return chosen & self.valid[:, None]

    def token_states(self) -> Tensor:
        """Hidden state of the token that each logit position predicts, at least float32, [B, T, D].

        The last position predicts nothing; it gets its own state.
        """
        assert self.hidden is not None, "the term did not declare that it reads hidden"
        following = (self.columns + 1).clamp(max=self.hidden.shape[1] - 1)
        return upcast(self.hidden[:, following])

    def own_states(self) -> Tensor:
        """Hidden state of the token at each logit position, at least float32, [B, T, D]."""
        assert self.hidden is not None, "the term did not declare that it reads hidden"
        return upcast(self.hidden[:, self.columns])

    def num_tokens(self) -> Tensor:
        """Labels of each row that count after the shift, [B]."""
        return self.mask.sum(-1)

    def nll(self) -> Tensor:
        """Sequence sum S(x) of the negative log-likelihood over labelled tokens, in nats, [B]."""
        return -self.logps.sum(-1)

    def ref_nll(self) -> Tensor:
        """Sequence sum S0(x) under the reference model, in nats, [B]."""
        assert self.ref_logps is not None, "the term did not declare that it reads ref_logps"
        return -self.ref_logps.sum(-1)

    def mean_nll(self) -> Tensor:
        """Token mean A(x) of each row, in nats per token, [B]; 0 for a row without labels."""
        return self.nll() / self.num_tokens().clamp(min=1)


def label_logps(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of shifted labels from full logits.

    Args:
        logits: Raw logits for every input position, [B, L, V].
        labels: Token ids, -100 where a token does not count, [B, L].

    Returns:
        Log-probabilities, 0 where there is no label, and their mask, both [B, L]; the last position
        predicts nothing and is masked.
    """
    shifted = torch.full_like(labels, -100)
    shifted[:, :-1] = labels[:, 1:]
    mask = shifted != -100
    logp = upcast(logits).log_softmax(-1)
    picked = logp.gather(-1, shifted.clamp(min=0)[..., None])[..., 0]
    return picked.masked_fill(~mask, 0.0), mask


def outputs_from_logits(
    logits: Tensor,
    labels: Tensor,
    attention_mask: Tensor,
    *,
    input_ids: Tensor | None = None,
    ref_logits: Tensor | None = None,
    hidden: Tensor | None = None,
    activations: Tensor | None = None,
    ref_activations: Tensor | None = None,
    index: Tensor | None = None,
    valid: Tensor | None = None,
) -> TokenOutputs:
    """The record for logits that already exist for every input position, such as stored ones.

    Args:
        logits: [B, L, V].
        labels: [B, L], -100 where a token does not count.
        attention_mask: [B, L].
        input_ids: [B, L]; needed only by losses that look at the tokens of unlabelled positions.
        ref_logits: Reference logits, [B, L, V].
        hidden: Hidden states, [B, L, D].
        activations: Output of a decoder block, [B, L, D].
        ref_activations: The same of the reference model, [B, L, D].
        index: Stream index of each row, [B].
        valid: Rows that take part, [B].
    """
    rows = logits.shape[0]
    attended = attention_mask.bool()
    logps, mask = label_logps(logits, labels)
    ref_logps = None if ref_logits is None else label_logps(ref_logits, labels)[0]
    tokens = labels.clamp(min=0) if input_ids is None else input_ids
    return TokenOutputs(
        logps=logps,
        mask=mask,
        nonpad=attended,
        predicts=shift_left(attended),
        not_last=shift_left(torch.ones_like(attended)),
        targets=shift_left(tokens),
        num_labels=(labels != -100).sum(-1),
        valid=torch.ones(rows, dtype=torch.bool) if valid is None else valid,
        index=torch.arange(rows) if index is None else index,
        columns=torch.arange(logits.shape[1], device=logits.device),
        ref_logps=ref_logps,
        logits=upcast(logits),
        ref_logits=None if ref_logits is None else upcast(ref_logits),
        hidden=hidden,
        activations=activations,
        ref_activations=ref_activations,
        hidden_mask=attended,
        label_mask=labels != -100,
    )


def shift_left(values: Tensor) -> Tensor:
    """`values` of the following position; 0 (or False) at the last one. Same shape [B, L]."""
    shifted = torch.zeros_like(values)
    shifted[:, :-1] = values[:, 1:]
    return shifted


def upcast(values: Tensor) -> Tensor:
    """At least float32: half-precision log-softmax loses the tail that entropy losses live on."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
