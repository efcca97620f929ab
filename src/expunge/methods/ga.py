"""GA: raise the loss on the forget set. GA+GD is gradient difference, GA+KL is KL minimisation."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.losses import gradient_ascent

register(
    ForgetLoss(
        name="GA",
        aliases=("grad_ascent", "gradient_ascent"),
        title="gradient ascent",
        paper="arXiv:2401.06121, section 4",
        term=Term(loss=gradient_ascent),
        notes="Unbounded below: it diverges with enough steps. The plain method averages over all "
        "answer tokens of a step, inside EGU, EGUP and PROXY over the samples' token means (C-15).",
    )
)
