"""Means and sums over all rows of an optimizer step, over micro-batches and processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.objectives import OwnRows


class Pair(NamedTuple):
    """A sum, or the logarithm of one, and the number of entries behind it; both 0-d."""

    value: Tensor
    number: Tensor


class Collector:
    """Collects the statistics of this process's micro-batches in a pass ahead of the step."""

    def __init__(self) -> None:
        self.means: dict[str, list[Pair]] = {}
        self.logs: dict[str, list[Pair]] = {}

    def mean(self, name: str, sums: Tensor, count: Tensor) -> Tensor:
        """Take note of a mean; what it returns is not used."""
        self.means.setdefault(name, []).append(Pair(sums.sum(), count.sum()))
        return sums.new_ones(())

    def log_sum(self, name: str, exponents: Tensor) -> Tensor:
        """Take note of exponents; what it returns is not used."""
        self.logs.setdefault(name, []).append(_log_pair(exponents))
        return exponents.new_zeros(())

    log_mean = log_sum

    def reduced(self, accelerator: Any) -> Step:
        """The statistics of the step over all processes."""
        means = {}
        for name, pairs in self.means.items():
            total = torch.stack([torch.stack([p.value, p.number.to(p.value)]) for p in pairs]).sum(
                0
            )
            means[name] = _reduce_mean(accelerator, total)
        logs = {name: _reduce_log(accelerator, pairs) for name, pairs in self.logs.items()}
        return Step(means, logs)


class Step:
    """Statistics that are already known."""

    def __init__(self, means: dict[str, Tensor], logs: dict[str, Pair]) -> None:
        self.means = means
        self.logs = logs

    def mean(self, name: str, sums: Tensor, count: Tensor) -> Tensor:
        """The mean over the step, 0-d."""
        return self.means[name].to(sums)

    def log_sum(self, name: str, exponents: Tensor) -> Tensor:
        """The logarithm of the sum over the step, 0-d."""
        return self.logs[name].value.to(exponents)

    def log_mean(self, name: str, exponents: Tensor) -> Tensor:
        """The logarithm of the mean over the step, 0-d."""
        pair = self.logs[name]
        return (pair.value - pair.number.clamp(min=1).log()).to(exponents)


class AcrossProcesses(OwnRows):
    """One micro-batch per process: the processes exchange a number instead of a pass ahead.

    Args:
        accelerator: The processes.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def mean(self, name: str, sums: Tensor, count: Tensor) -> Tensor:
        """See `Statistics`."""
        return _reduce_mean(self.accelerator, torch.stack([sums.sum(), count.sum().to(sums)]))

    def log_sum(self, name: str, exponents: Tensor) -> Tensor:
        """See `Statistics`."""
        return _reduce_log(self.accelerator, [_log_pair(exponents.detach())]).value

    def log_mean(self, name: str, exponents: Tensor) -> Tensor:
        """See `Statistics`."""
        pair = _reduce_log(self.accelerator, [_log_pair(exponents.detach())])
        return pair.value - pair.number.clamp(min=1).log()


def _log_pair(exponents: Tensor) -> Pair:
    flat = exponents.flatten()
    return Pair(flat.logsumexp(0), flat.isfinite().sum().to(flat))


def _reduce_mean(accelerator: Any, total: Tensor) -> Tensor:
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total.detach(), reduction="sum")
    return total[0] / total[1].clamp(min=1)


def _reduce_log(accelerator: Any, pairs: list[Pair]) -> Pair:
    values = torch.stack([pair.value for pair in pairs])
    numbers = torch.stack([pair.number for pair in pairs])
    if accelerator.num_processes > 1:
        # Every process has its own number of micro-batches, so each first sums its own.
        values = accelerator.gather(values.logsumexp(0, keepdim=True))
        numbers = accelerator.gather(numbers.sum(0, keepdim=True))
    return Pair(values.logsumexp(0), numbers.sum())
