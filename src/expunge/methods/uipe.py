"""UIPE: carry the update of an unlearned model further in the same direction."""

from expunge.methods import PostStep, register
from expunge.postprocess import ExtrapolationOptions

register(
    PostStep(
        name="UIPE",
        title="extrapolation of the parameter update",
        paper="arXiv:2503.04693, equation 6",
        options=ExtrapolationOptions,
        notes="alpha=0 leaves the unlearned model as it is, alpha=-1 gives the target model back. "
        "Choose the base run before its utility collapses: a broken direction gets amplified.",
    )
)
