"""EGU, EGUP and the proxy constraint alone: wrappers around any forget loss."""

from expunge.methods import Wrapper, register
from expunge.objectives import EntanglementOptions, ProxyOptions

PAPER = "arXiv:2508.20443"
OPEN = (
    "Published tables disagree with each other by about 0.02 in utility (E-16). Learning rates, "
    "beta of NPO, rank and alpha of LoRA are not published; the recipes in egup/ take those of "
    "TOFU: training.learning_rate=1e-5 or 2e-5, lora.r=8, lora.alpha=32 (E-18)."
)

register(
    Wrapper(
        name="EGU",
        aliases=("EAGLE",),
        title="weights by entanglement with the retain set, and a drift term",
        paper=f"{PAPER}, section 5.1, algorithm 1",
        options=(EntanglementOptions,),
        notes="Samples far from the retain set get more effort (E-01). The sum over a batch of "
        "weighted losses equals the plain method when all weights are equal (k=0). The drift term "
        f"compares with the retain centre (E-14). {OPEN}",
    )
)
register(
    Wrapper(
        name="EGUP",
        aliases=("EAGLE-PC",),
        title="EGU with a proxy constraint",
        paper=f"{PAPER}, section 5.2, algorithm 2",
        options=(EntanglementOptions, ProxyOptions),
        notes="While no proxy penalty fires it equals EGU bit for bit. lambda_c follows mu unless "
        f"it is given (E-07). The drift term compares with the retain centre (E-14). {OPEN}",
    )
)
register(
    Wrapper(
        name="PROXY",
        aliases=("EGUP_w/o",),
        title="the proxy constraint alone (EGUP_w/o in the paper)",
        paper=f"{PAPER}, section 6, ablation",
        options=(ProxyOptions,),
        rank=2,
    )
)
