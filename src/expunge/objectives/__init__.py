"""Losses, weights and constraints on tensors, and the objective that adds them up."""

from expunge.models.outputs import Positions, TokenOutputs
from expunge.objectives.constraints import Multiplier, MultiplierOptions
from expunge.objectives.entanglement import EntanglementOptions, EntanglementState
from expunge.objectives.losses import Average, declared_losses, loss, loss_info
from expunge.objectives.objective import Objective
from expunge.objectives.proxy import ProxyOptions
from expunge.objectives.state import ObjectiveState, OwnRows, Statistics
from expunge.objectives.term import ObjectiveSums, Term, TermSum
from expunge.objectives.weighting import ConfidenceOptions, EmpiricalOptions, SaturationOptions

__all__ = [
    "Average",
    "ConfidenceOptions",
    "EmpiricalOptions",
    "EntanglementOptions",
    "EntanglementState",
    "Multiplier",
    "MultiplierOptions",
    "Objective",
    "ObjectiveState",
    "ObjectiveSums",
    "OwnRows",
    "Positions",
    "ProxyOptions",
    "SaturationOptions",
    "Statistics",
    "Term",
    "TermSum",
    "TokenOutputs",
    "declared_losses",
    "loss",
    "loss_info",
]
