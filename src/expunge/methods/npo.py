"""NPO: gradient ascent that fades once a sample is less likely than under the reference model."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.losses import npo

register(
    ForgetLoss(
        name="NPO",
        title="negative preference optimisation",
        paper="arXiv:2404.05868, equation 3",
        term=Term(loss=npo),
        notes="NPO alone has no retain term, unlike the default of open-unlearning (C-03): write "
        "NPO+GD. On MUSE the released code of several papers compares raw logits one by one "
        "instead (C-04); that is another function.",
    )
)
