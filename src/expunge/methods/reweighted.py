"""WGA and SatImp: gradient ascent with weighted tokens."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.losses import saturation_importance_ascent, weighted_gradient_ascent

register(
    ForgetLoss(
        name="WGA",
        title="gradient ascent weighted by confidence",
        paper="arXiv:2502.19301, equation 6",
        term=Term(loss=weighted_gradient_ascent),
        notes="The same as CONFIDENCE(GA); needs no reference model.",
    )
)
register(
    ForgetLoss(
        name="SatImp",
        title="gradient ascent weighted by saturation and importance",
        paper="arXiv:2505.11953, equation 10",
        term=Term(loss=saturation_importance_ascent),
        retain_weight_with={"GD": 0.1},
        notes="Weights 1.0 on the forget and 0.1 on the retain side, the paper's ratio of 10; the "
        "configuration shipped with open-unlearning has them the other way round: "
        "SatImp(weight=0.1)+GD(weight=1.0) (C-09).",
    )
)
