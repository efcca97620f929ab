"""EGU, EGUP and the proxy constraint alone: wrappers around any forget loss."""

from expunge.methods import Wrapper, register
from expunge.objectives import EntanglementOptions, ProxyOptions

PAPER = "arXiv:2508.20443"

register(
    Wrapper(
        name="EGU",
        aliases=("EAGLE",),
        title="weights by entanglement with the retain set, and a drift term",
        paper=f"{PAPER}, section 5.1, algorithm 1",
        options=(EntanglementOptions,),
        notes="Samples far from the retain set get more effort (E-01). The mean over a batch of "
        "weighted losses equals the plain method when all weights are equal (k=0).",
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
        "it is given (E-07).",
    )
)
register(
    Wrapper(
        name="PROXY",
        aliases=("EGUP_w/o",),
        title="the proxy constraint alone (EGUP_w/o in the paper)",
        paper=f"{PAPER}, section 6, ablation",
        options=(ProxyOptions,),
    )
)
