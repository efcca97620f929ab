"""LLMU: ascent on the forget answers, descent on mismatched ones, close on the rest."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.losses import gradient_ascent, nll

register(
    ForgetLoss(
        name="LLMU",
        title="gradient ascent with random answers",
        paper="arXiv:2310.10683, section 4",
        term=Term(loss=gradient_ascent),
        auxiliary={"mismatch": Term(loss=nll, on=("mismatch",))},
        notes="Use LLMU+KL. The mismatch stream asks forget questions and answers them as retain "
        "rows do. All weights are 1 and there is one such answer per question, as in "
        "arXiv:2410.08109; the original is LLMU(weight=0.5, num_mismatch=5, average=rows)"
        "+KL(form=cross_entropy, positions=all).",
    )
)
