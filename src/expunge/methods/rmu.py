"""RMU: steer the hidden states of forget text to a random direction, keep those of other text."""

from expunge.methods import ForgetLoss, RetainTerm, register
from expunge.objectives import Term
from expunge.objectives.activation import match_activations, misdirect

register(
    ForgetLoss(
        name="RMU",
        title="representation misdirection",
        paper="arXiv:2403.03218, section 4",
        term=Term(loss=misdirect),
        trainable=r"\.({layer-2}|{layer-1}|{layer})\.mlp\.(down_proj|fc2|dense_4h_to_h)\.weight",
        notes="Use RMU+ACT. By default only the down-projections of the block and the two before "
        "it move, as in the WMDP code (training.trainable=auto); training.trainable=all moves "
        "everything, the default of open-unlearning (C-17). The plain form is the mean over rows "
        "of their token means; open-unlearning divides differently: average=broadcast; the WMDP "
        "code averages over padding too: RMU(positions=all, average=tokens) (C-11). Two topics are "
        "two runs, or one forget set with one direction.",
    )
)
register(
    RetainTerm(
        name="ACT",
        title="keep the hidden states of the retain set, as in RMU",
        paper="arXiv:2403.03218, section 4",
        term=Term(loss=match_activations, on=("retain",)),
        notes="Published weights: 100 per topic in the WMDP script, 1200 with Zephyr at steering "
        "6.5, 1 in open-unlearning. The variants of RMU's average exist here too (C-11).",
    )
)
