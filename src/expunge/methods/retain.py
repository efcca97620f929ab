"""Retain terms: what keeps the rest of the model's knowledge in place."""

from expunge.methods import RetainTerm, register
from expunge.objectives import Term
from expunge.objectives.losses import answer_preservation, kl_to_reference, nll

register(
    RetainTerm(
        name="GD",
        aliases=("GDR", "NLL"),
        title="gradient descent on the retain set",
        paper="arXiv:2401.06121, section 4",
        term=Term(loss=nll, on=("retain",)),
    )
)
register(
    RetainTerm(
        name="KL",
        aliases=("KLR",),
        title="stay close to the reference model's predictions on the retain set",
        paper="arXiv:2401.06121, section 4",
        term=Term(loss=kl_to_reference, on=("retain",)),
        notes="KL(reference || model). The plain form averages over question and answer; the "
        "released codes also average over padding: KL(positions=all) (C-02).",
    )
)
register(
    RetainTerm(
        name="AP",
        title="answer preservation against rejections",
        paper="arXiv:2410.08109, section 3.3",
        term=Term(loss=answer_preservation, on=("retain", "retain_alternate")),
    )
)
