"""UNDIAL: distil from the reference model with the true token held down."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.distribution import self_distillation, self_distillation_as_released

register(
    ForgetLoss(
        name="UNDIAL",
        title="self-distillation with adjusted logits",
        paper="arXiv:2402.10052, equation 5",
        term=Term(loss=self_distillation),
        notes="On answer tokens. open-unlearning averages over prompt and padding too, where it "
        "holds an unrelated token down: UNDIAL-OU (C-10). The paper trains LoRA r 8 alpha 16.",
    )
)
register(
    ForgetLoss(
        name="UNDIAL-OU",
        title="UNDIAL as open-unlearning runs it",
        paper="code of open-unlearning",
        term=Term(loss=self_distillation_as_released),
        notes="At positions without a label the token number V - 100 is held down (C-10). Here to "
        "reproduce numbers made with that code.",
    )
)
