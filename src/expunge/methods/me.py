"""ME: push the predictions on the forget set towards a uniform guess."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.distribution import maximise_entropy

register(
    ForgetLoss(
        name="ME",
        title="maximum entropy",
        paper="arXiv:2410.08109, section 3.2",
        term=Term(loss=maximise_entropy),
        weight_with={"GD": 0.1, "KL": 0.1},
        notes="The plain form is the paper's: KL(model || uniform) over question and answer. The "
        "released code is ME(direction=uniform_to_model, positions=all) with rows padded to "
        "a fixed length (C-06, C-07). Published weights of ME+GD: 0.1 on TOFU, 0.5 on real-world "
        "individuals, 1.0 for continual requests (C-08).",
    )
)
