"""WHP and ULD: two models answer as one, and the weights of the target model stay as they are."""

from expunge.methods import PostStep, register
from expunge.models.combine import UldOptions, WhpOptions

register(
    PostStep(
        name="WHP",
        title="logits pushed away from a model that learned the forget set",
        paper="arXiv:2310.02238, equation 1; as in arXiv:2407.06460",
        options=WhpOptions,
        inner="REINFORCE",
        result="combination",
        notes="The result is one folder with both models; it generates and is evaluated like any "
        "other. Distilling the combined logits back into one model is not part of it.",
    )
)
register(
    PostStep(
        name="ULD",
        title="logits of a small assistant that knows only the forget set, subtracted",
        paper="arXiv:2406.08607, section 3",
        options=UldOptions,
        inner="REINFORCE+UNIFORM(weight=5)",
        result="combination",
        notes="The assistant starts as the first layers of the target model and learns the reverse "
        "task: the forget set well, nothing on the retain set. Published: LoRA r 16 alpha 32, "
        "learning rate 1e-3, 10 epochs; its data holds paraphrases of the forget rows too, which "
        "here are rows of your own file.",
    )
)
