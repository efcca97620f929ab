"""PDU: flat logits on the forget set under a constraint on the retain loss."""

from expunge.methods import ForgetLoss, register
from expunge.objectives import Term
from expunge.objectives.distribution import flatten_logits

register(
    ForgetLoss(
        name="PDU",
        title="flat logits with a primal-dual retain weight",
        paper="arXiv:2506.05314, section 4",
        term=Term(loss=flatten_logits),
        retain_weight_with={"GD": 100.0},
        needs_limit=True,
        notes="Write PDU+GD(limit=0.3, dual_step=5, dual_warmup=5): the retain weight starts at "
        "100 and becomes a multiplier. The limit has no default: take it somewhat above the target "
        "model's retain loss. Published: TOFU start 100, step 5, limit 0.3, 5 epochs of warm-up; "
        "MUSE start 50, step 1, warm-up 3, limit 1.5 (News) and 0.1 (Books) for 7B. "
        "open-unlearning masks without the shift by one token: PDU(positions=unshifted) (C-12), "
        "and moves the multiplier in every micro-batch; here it moves once per optimizer step.",
    )
)
