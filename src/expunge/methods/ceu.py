"""CE-U: cross-entropy to the model's own distribution without the true token."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.distribution import cross_entropy_unlearning

register(
    ForgetLoss(
        name="CE-U",
        aliases=("CEU",),
        title="cross-entropy unlearning",
        paper="arXiv:2503.01224, section 3",
        term=Term(loss=cross_entropy_unlearning),
        notes="The published method has no retain term. A one-token answer contributes nothing "
        "with ignore_first=1.",
    )
)
