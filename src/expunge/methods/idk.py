"""IDK: answer forget questions with a rejection; IDK+AP also preserves the other answers."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.losses import nll

register(
    ForgetLoss(
        name="IDK",
        title="fine-tuning on rejections",
        paper="arXiv:2401.06121, section 4; IDK+AP: arXiv:2410.08109, section 3.3",
        kind="targeted",
        term=Term(loss=nll, on=("alternate",)),
        notes="A rejection is drawn from 100 templates for every visit. With a retain term the two "
        "means are added, as in arXiv:2410.08109; the TOFU code takes one mean over the tokens of "
        "both (C-13).",
    )
)
