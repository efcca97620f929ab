"""SimNPO: NPO without a reference model, on length-normalised likelihoods."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.preference import (
    simnpo,
    simnpo_batch_mean,
    simnpo_muse_as_released,
)

register(
    ForgetLoss(
        name="SimNPO",
        title="reference-free NPO on token means",
        paper="arXiv:2410.07163, equation 4",
        term=Term(loss=simnpo),
        weight_with={"GD": 0.125},
        notes="delta stands inside the factor beta as in the code, gamma outside as in the paper; "
        "gamma equals beta times delta and both are 0 everywhere (C-05). On MUSE and WMDP the "
        "released code does something else: SimNPO-MUSE, SimNPO-WMDP (C-04). Published weights "
        "with GD: 0.125 at beta 4.5 (TOFU 10%), 0.1375 at beta 2.5 (TOFU 5%).",
    )
)
register(
    ForgetLoss(
        name="SimNPO-MUSE",
        title="SimNPO as coded for MUSE: raw logits one by one",
        paper="released code of arXiv:2410.07163",
        term=Term(loss=simnpo_muse_as_released),
        notes="Pushes every raw logit down, whatever the token (C-04). Published: beta 0.7 on "
        "News, 0.75 on Books, retain weight 0.1.",
    )
)
register(
    ForgetLoss(
        name="SimNPO-WMDP",
        title="SimNPO on the token mean of a step",
        paper="released WMDP code of arXiv:2410.07163",
        term=Term(loss=simnpo_batch_mean),
        notes="One mean for the whole step instead of one per sequence (C-04). Here to reproduce "
        "numbers made with that code.",
    )
)
