"""NPO: gradient ascent that fades once a sample is less likely than under the reference model."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.preference import npo, npo_batch_mean, npo_muse_as_released

register(
    ForgetLoss(
        name="NPO",
        title="negative preference optimisation",
        paper="arXiv:2404.05868, equation 3",
        term=Term(loss=npo),
        notes="NPO alone has no retain term, unlike the default of open-unlearning (C-03): write "
        "NPO+GD. On MUSE the released code of several papers compares raw logits one by one "
        "instead: NPO-MUSE; the WMDP code of SimNPO uses one token mean: NPO-WMDP (C-04).",
    )
)
register(
    ForgetLoss(
        name="NPO-MUSE",
        title="NPO as the MUSE baselines are coded: raw logits one by one",
        paper="released code of arXiv:2407.06460",
        term=Term(loss=npo_muse_as_released),
        notes="Not NPO (C-04): at the start it moves all logits alike, which changes no "
        "probability. Here to reproduce numbers made with that code.",
    )
)
register(
    ForgetLoss(
        name="NPO-WMDP",
        title="NPO on the token mean of a step",
        paper="released WMDP code of arXiv:2410.07163",
        term=Term(loss=npo_batch_mean),
        notes="One ratio for the whole step instead of one per sequence (C-04).",
    )
)
