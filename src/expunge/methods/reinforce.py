"""Learn the forget set, for steps that turn around what was learned; ULD's retain side."""

from expunge.methods import ForgetLoss, RetainTerm, register
from expunge.objectives import Term
from expunge.objectives.distribution import uniform_to_model
from expunge.objectives.losses import nll

register(
    ForgetLoss(
        name="REINFORCE",
        title="learn the forget set even better",
        paper="arXiv:2310.02238, section 2; arXiv:2407.06460, appendix B",
        kind="reinforcing",
        term=Term(loss=nll),
        notes="No unlearning by itself: the reinforced model inside WHP, TASKVECTOR and ULD.",
    )
)
register(
    RetainTerm(
        name="UNIFORM",
        title="guess uniformly on the retain set, as ULD's assistant",
        paper="arXiv:2406.08607, equation 5",
        term=Term(loss=uniform_to_model, on=("retain",)),
        notes="Published weight 5. The released code averages over padding too: "
        "UNIFORM(positions=all).",
    )
)
