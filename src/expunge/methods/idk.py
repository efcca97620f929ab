"""IDK and DPO: answer forget questions with a rejection, or with another answer."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.losses import nll
from expunge.objectives.preference import dpo, kto

register(
    ForgetLoss(
        name="IDK",
        aliases=("PO",),
        title="fine-tuning on rejections",
        paper="arXiv:2401.06121, section 4; IDK+AP: arXiv:2410.08109, section 3.3",
        kind="targeted",
        term=Term(loss=nll, on=("alternate",)),
        notes="A rejection is drawn from 100 templates for every visit. With a retain term the two "
        "means are added, as in arXiv:2410.08109; the TOFU code takes one mean over the tokens of "
        "both: IDK-TOFU (C-13).",
    )
)
register(
    ForgetLoss(
        name="IDK-TOFU",
        title="fine-tuning on rejections and retain rows as one batch",
        paper="released code of arXiv:2401.06121",
        kind="targeted",
        term=Term(loss=nll, on=("alternate", "retain"), pooled=True),
        notes="One token mean over rejections and retain answers together: rejections are short, "
        "so retain tokens dominate (C-13).",
    )
)
register(
    ForgetLoss(
        name="DPO",
        aliases=("IDK-DPO",),
        title="direct preference of a rejection over the answer",
        paper="arXiv:2305.18290, equation 7; for unlearning: arXiv:2404.05868",
        kind="targeted",
        term=Term(loss=dpo, on=("forget", "alternate")),
        notes="The factor in front is 2/beta as in all unlearning codes but TOFU's, which is "
        "scale=1 (C-14).",
    )
)
register(
    ForgetLoss(
        name="AltPO",
        title="preference of a plausible wrong answer over the true one",
        paper="arXiv:2409.13474, equation 3",
        kind="targeted",
        term=Term(loss=dpo, on=("forget", "alternate")),
        alternates="file",
        notes="DPO with alternates that the target model wrote itself: make them with expunge "
        "alternates. Every alternate is one row of an epoch. Published with GD: beta 0.05, 0.1 and "
        "0.5, retain weight 1, 2 and 5, 2 epochs.",
    )
)
register(
    ForgetLoss(
        name="KTO",
        title="Kahneman-Tversky optimisation against the answer",
        paper="arXiv:2402.01306; the variants in the code of arXiv:2404.05868",
        kind="targeted",
        term=Term(loss=kto, on=("forget", "alternate")),
        notes="link=sigmoid and link=logsigmoid are kto_sigmoid and kto_logsigmoid there. The mean "
        "over rejections runs over the whole step.",
    )
)
