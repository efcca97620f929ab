"""One trainer for every method: a readable loop on accelerate."""

from expunge.training.arguments import TrainingArguments
from expunge.training.callbacks import Callback, JsonlLog, StepRecord, Trackers
from expunge.training.trainer import Trainer, TrainResult

__all__ = [
    "Callback",
    "JsonlLog",
    "StepRecord",
    "Trackers",
    "TrainResult",
    "Trainer",
    "TrainingArguments",
]
