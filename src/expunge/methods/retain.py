"""Retain terms: what keeps the rest of the model's knowledge in place."""

from expunge.methods import RetainTerm, register
from expunge.objectives import Term
from expunge.objectives.distribution import kl_muse_as_released, kl_to_reference
from expunge.objectives.losses import nll
from expunge.objectives.preference import answer_preservation

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
        "released codes also average over padding: KL(positions=all). The code of LLMU leaves out "
        "a constant: form=cross_entropy. The code of MUSE is KL-MUSE (C-02).",
    )
)
register(
    RetainTerm(
        name="KL-MUSE",
        title="KL as the MUSE baselines are coded, on raw logits",
        paper="released code of arXiv:2407.06460",
        term=Term(loss=kl_muse_as_released, on=("retain",)),
        notes="No divergence: it can be far below 0 and has no minimum at the reference (C-02). "
        "Here to reproduce numbers made with that code.",
    )
)
register(
    RetainTerm(
        name="KL-forget",
        title="stay close to the reference model on the forget set",
        paper="ga_forget_kl in the code of arXiv:2404.05868",
        term=Term(loss=kl_to_reference, on=("forget",)),
        notes="Keeps the retain set out of it: a way to slow gradient ascent down.",
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
