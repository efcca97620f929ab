"""UIPE and task vectors: where to go along the line between two sets of weights."""

from expunge.methods import PostStep, register
from expunge.postprocess import ExtrapolationOptions
from expunge.postprocess.task_vector import TaskVectorOptions

register(
    PostStep(
        name="UIPE",
        title="extrapolation of the parameter update",
        paper="arXiv:2503.04693, equation 6",
        options=ExtrapolationOptions,
        notes="alpha=0 leaves the unlearned model as it is, alpha=-1 gives the target model back. "
        "Choose the base run before its utility collapses: a broken direction gets amplified. "
        "alpha=auto takes the largest factor within the utility budget (--budget utility=0.98).",
    )
)
register(
    PostStep(
        name="TASKVECTOR",
        aliases=("TASK_VECTOR", "TV"),
        title="step away from a model that learned the forget set",
        paper="arXiv:2212.04089; for unlearning: arXiv:2407.06460",
        options=TaskVectorOptions,
        inner="REINFORCE",
        notes="The same line as UIPE: theta_un the reinforced model and alpha -(1 + alpha). MUSE "
        "reinforces for 10 epochs at learning rate 1e-5 on a cosine schedule.",
    )
)
