"""Wrappers that weigh tokens or samples by what the model already knows, and a flat update."""

from expunge.methods import Wrapper, register
from expunge.objectives import ConfidenceOptions, EmpiricalOptions, SaturationOptions
from expunge.objectives.updates import SharpnessOptions

register(
    Wrapper(
        name="CONFIDENCE",
        title="token weights p^beta, as in WGA",
        paper="arXiv:2502.19301, equation 6",
        options=(ConfidenceOptions,),
        rank=0,
        notes="CONFIDENCE(GA) is WGA. In losses on whole sequences (NPO, DPO) the weights act on "
        "the tokens inside the log-likelihood.",
    )
)
register(
    Wrapper(
        name="SATURATION",
        title="token weights p^beta1 (1 - p)^beta2, as in SatImp",
        paper="arXiv:2505.11953, equation 10",
        options=(SaturationOptions,),
        rank=0,
        notes="SATURATION(GA) is SatImp.",
    )
)
register(
    Wrapper(
        name="EMPIRICAL",
        title="sample weights by the inverse of each sample's own loss",
        paper="arXiv:2409.19732, the baseline named in arXiv:2508.20443",
        options=(EmpiricalOptions,),
        notes="The paper of EGUP reports no power of its own; 0.5 is that of the released "
        "settings.",
    )
)
register(
    Wrapper(
        name="SAM",
        title="sharpness-aware update",
        paper="arXiv:2502.05374, equation 7",
        options=(SharpnessOptions,),
        rank=3,
        notes="An update rule, so it goes around everything that has a gradient.",
    )
)
