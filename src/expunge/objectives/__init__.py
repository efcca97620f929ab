"""Losses, weights and constraints on tensors, and the objective that adds them up."""

from expunge.models.outputs import Positions, TokenOutputs
from expunge.objectives.entanglement import EntanglementOptions, EntanglementState
from expunge.objectives.losses import declared_losses, loss, loss_info
from expunge.objectives.objective import Objective, ObjectiveSums, Term
from expunge.objectives.proxy import ProxyOptions

__all__ = [
    "EntanglementOptions",
    "EntanglementState",
    "Objective",
    "ObjectiveSums",
    "Positions",
    "ProxyOptions",
    "Term",
    "TokenOutputs",
    "declared_losses",
    "loss",
    "loss_info",
]
