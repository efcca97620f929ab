"""Task-vector negation: step away from a model reinforced on the forget set, arXiv:2212.04089."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from expunge.postprocess.extrapolate import extrapolate


@dataclass(frozen=True, kw_only=True)
class TaskVectorOptions:
    """Options of task-vector negation.

    Attributes:
        alpha: How often the reinforcement is taken away; 0 is the target model. 5 is the default of
            the MUSE script; the values MUSE chose are 16 for News and 1 for Books.
    """

    alpha: Annotated[float, Ge(0)] = 5.0


def negate(
    initial: Mapping[str, Tensor], reinforced: Mapping[str, Tensor], *, alpha: float
) -> dict[str, Tensor]:
    """`initial - alpha (reinforced - initial)` for every floating tensor; others are copied.

    Formed in float32 at least and cast once, to the type of the initial tensor; other tensors come
    from the initial model. Exactly `initial` at alpha 0 and `reinforced` at alpha -1.

    Args:
        initial: Parameters of the target model.
        reinforced: Parameters of the target model after fine-tuning on the forget set.
        alpha: How often the difference is subtracted.

    Raises:
        InputError: The two have different names or shapes, that is, different architectures.
    """
    # The line through both models, left of the initial one. Read from the other end it is
    # extrapolate(initial, reinforced, alpha=-(1 + alpha)).
    return extrapolate(reinforced, initial, alpha=alpha)
