"""AdamW in the form that fits weights and hardware: fused, with 8-bit moments, or for bfloat16."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from expunge.core.errors import InputError, Problem
from expunge.training.arguments import TrainingArguments

logger = logging.getLogger(__name__)

Rule = Literal["float32", "stochastic_rounding", "none"]
EXTRA = "8bit"
_CPU_CHUNK = 2**16  # numbers that fit into the cache with everything computed from them
_GPU_CHUNK = 2**24
_LOW_BITS = 16  # what float32 has and bfloat16 has not


def make_optimizer(
    parameters: Sequence[Tensor], arguments: TrainingArguments
) -> torch.optim.Optimizer:
    """The optimizer of a training, from `optimizer`, `master_weights` and the type of the weights.

    Args:
        parameters: What trains, on the device where it trains.
        arguments: How.

    Raises:
        InputError: The 8-bit optimizer is not installed, or cannot do what is asked of it.
    """
    groups = _groups(parameters, arguments.weight_decay)
    common: dict[str, Any] = {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }
    rule = rounding_rule(parameters, arguments)
    if arguments.optimizer == "adamw_8bit":
        return _eight_bit(groups, common, rule, arguments.seed)
    if rule != "none":
        return NarrowAdamW(groups, **common, rule=rule, seed=arguments.seed)
    return torch.optim.AdamW(groups, **common, fused=_has_fused(parameters) or None)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of every group, also where an optimizer keeps it as a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def rounding_rule(parameters: Iterable[Tensor], arguments: TrainingArguments) -> Rule:
    """How the update reaches the weights; `none` wherever they are in float32.

    Raises:
        InputError: The 8-bit optimizers have no such rule.
    """
    if all(parameter.dtype != torch.bfloat16 for parameter in parameters):
        return "none"
    wanted = arguments.master_weights
    if arguments.optimizer == "adamw" or wanted == "none":
        return "stochastic_rounding" if wanted == "auto" else wanted
    if wanted == "float32":
        raise _problem(
            "master_weights",
            "float32 does not go with optimizer=adamw_8bit, which is there to save that memory; "
            "take stochastic_rounding, or optimizer=adamw",
        )
    if _installed("torchao"):
        return "stochastic_rounding"
    if wanted == "stochastic_rounding":
        raise _problem(
            "master_weights",
            "stochastic_rounding with optimizer=adamw_8bit needs torchao (pip install torchao); "
            "bitsandbytes rounds to the nearest, which master_weights=none accepts",
        )
    logger.warning(
        "bitsandbytes rounds bfloat16 weights to the nearest: updates below about 1/256 of a "
        "weight are lost. With torchao they are rounded stochastically"
    )
    return "none"


def optimizer_fault(arguments: TrainingArguments) -> str:
    """Why the chosen optimizer cannot be had here; empty if it can."""
    if arguments.optimizer != "adamw_8bit" or _installed("bitsandbytes") or _installed("torchao"):
        return ""
    return (
        "adamw_8bit needs bitsandbytes or torchao, and neither is installed. Install it with: "
        f"pip install 'expunge[{EXTRA}]', or take adamw"
    )


def _problem(where: str, message: str) -> InputError:
    return InputError(Problem(where=f"training.{where}", message=message))


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _has_fused(parameters: Sequence[Tensor]) -> bool:
    """Whether torch has a fused AdamW where the parameters are."""
    try:
        torch.optim.AdamW(parameters, fused=True)
    except RuntimeError:
        return False
    return True


def _groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices, which decay, and vectors: norm scales and biases, which would only shrink."""
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in parameters:
        (decay if parameter.ndim >= 2 else plain).append(parameter)
    groups = [
        {"params": decay, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


# Weights in bfloat16 ------------------------------------------------------------------------------


class NarrowAdamW(torch.optim.Optimizer):
    """AdamW for weights in bfloat16, computed in float32.

    bfloat16 has 8 significant bits: rounded to the nearest, an update below 1/512 of a weight
    changes nothing, and a second moment whose decay is 0.999 never falls. Here either the weights
    have float32 masters (`rule=float32`), or weights and second moments are rounded
    stochastically: up with a probability that is the fraction cut off, so that the mean is exact
    (arXiv:2010.06192). Everything goes piece by piece, so that float32 exists only for a small part
    at a time.

    The random bits are a function of seed and step alone: processes round alike, and a resumed run
    goes on as if it had not stopped.

    Weights in float32 are updated as by torch's AdamW.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        rule: How updates reach bfloat16 weights.
        state_dtype: Type of their moments; bfloat16 unless there are masters, float32 with them.
        seed: Seed of the rounding.
        chunk: Numbers of a piece; by the device if None.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        rule: Literal["float32", "stochastic_rounding"] = "stochastic_rounding",
        state_dtype: torch.dtype | None = None,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.rule = rule
        masters = rule == "float32"
        self.state_dtype = state_dtype or (torch.float32 if masters else torch.bfloat16)
        self.seed = seed
        self.chunk = chunk
        self._fused: bool | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tools: dict[tuple[torch.device, int], _Tools] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    self._begin(parameter, state)
                key = (parameter.device, int(state["step"]))
                if key not in tools:
                    tools[key] = _Tools(self.seed, key[1], self._chunk(parameter), key[0])
                self._update(parameter, state, group, tools[key])
                state["step"] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, every tensor in its own type."""
        super().load_state_dict({**state_dict, "state": {}})
        _put_back(self, state_dict["state"])

    def _begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        narrow = parameter.dtype == torch.bfloat16
        kind = self.state_dtype if narrow else parameter.dtype
        state["step"] = torch.tensor(0.0)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros(parameter.shape, dtype=kind, device=parameter.device)
        if narrow and self.rule == "float32":
            state["master"] = parameter.detach().float().contiguous()

    def _chunk(self, parameter: Tensor) -> int:
        if self.chunk is not None:
            return self.chunk
        return _CPU_CHUNK if parameter.device.type == "cpu" else _GPU_CHUNK

    def _update(
        self, parameter: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], tools: _Tools
    ) -> None:
        stored = parameter.detach()
        weights = stored.contiguous()
        gradient = parameter.grad
        assert gradient is not None, "checked by the caller"
        flat = {
            "weight": weights.view(-1),
            "grad": gradient.reshape(-1),
            **{name: value.view(-1) for name, value in state.items() if name != "step"},
        }
        if self._fused is None:
            self._fused = _has_fused([parameter])
        pieces = zip(*(values.split(tools.size) for values in flat.values()), strict=True)
        for piece in pieces:
            _adamw(dict(zip(flat, piece, strict=True)), group, tools, fused=self._fused)
        if not stored.is_contiguous():
            stored.copy_(weights)


def _adamw(
    piece: Mapping[str, Tensor], group: Mapping[str, Any], tools: _Tools, *, fused: bool
) -> None:
    """AdamW (arXiv:1711.05101, algorithm 2) on a piece [n] of everything, in float32 or wider."""
    beta1, beta2 = group["betas"]
    stored = piece["weight"]
    weight = tools.wide("weight", piece.get("master", stored))
    first = tools.wide("exp_avg", piece["exp_avg"])
    second = tools.wide("exp_avg_sq", piece["exp_avg_sq"])
    adamw(
        [weight],
        [tools.wide("grad", piece["grad"])],
        [first],
        [second],
        [],
        [tools.step()],
        foreach=False,
        fused=fused,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    if first is not piece["exp_avg"]:
        # The first moment moves by a tenth at each step; the nearest number is near enough.
        piece["exp_avg"].copy_(first)
    if second is not piece["exp_avg_sq"]:
        tools.round_into(piece["exp_avg_sq"], second)
    if "master" in piece:
        stored.copy_(weight)
    elif weight is not stored:
        tools.round_into(stored, weight)


class _Tools:
    """Room to compute in, and the random bits of one step.

    One block of bits is drawn, twice as long as a piece, and each use starts elsewhere in it:
    generators on a CPU are slow. Every number gets evenly distributed bits, independent of those of
    its piece and of all but one or so in any other.
    """

    def __init__(self, seed: int, done: int, size: int, device: torch.device) -> None:
        self.size = size
        self._done = done
        self._step = torch.empty((), device=device)
        self._room: dict[str, Tensor] = {}
        self._block: Tensor | None = None
        self._device = device
        self._mixed = int(np.random.SeedSequence([seed, done]).generate_state(1, np.uint64)[0])
        self._uses = random.Random(self._mixed)

    def step(self) -> Tensor:
        """Steps done before this one, as torch's function counts them up."""
        return self._step.fill_(self._done)

    def wide(self, name: str, values: Tensor) -> Tensor:
        """The tensor itself, or a copy in float32 of a narrow one, until the next call."""
        if values.dtype not in (torch.bfloat16, torch.float16):
            return values
        if name not in self._room:
            self._room[name] = torch.empty(self.size, device=self._device)
        return self._room[name][: len(values)].copy_(values)

    def round_into(self, target: Tensor, values: Tensor) -> None:
        """Round float32 values stochastically into a bfloat16 tensor; the values are used up."""
        if self._block is None:
            generator = torch.Generator(self._device).manual_seed(self._mixed >> 1)
            self._block = torch.randint(
                2**_LOW_BITS,
                (2 * self.size,),
                generator=generator,
                device=self._device,
                dtype=torch.int32,
            )
        start = self._uses.randrange(self.size)
        noise = self._block[start : start + len(values)]
        # What is added carries into the upper bits as often as the lower ones are large.
        values.view(torch.int32).add_(noise).bitwise_and_(-(2**_LOW_BITS))
        target.copy_(values)


def stochastically_rounded(values: Tensor, *, seed: int = 0, step: int = 0) -> Tensor:
    """Values in bfloat16 whose mean over many steps is that of the float32 ones, same shape.

    Args:
        values: In float32; left as they are.
        seed: Seed of the rounding.
        step: Number of the draw.
    """
    flat = values.detach().clone().view(-1)
    result = torch.empty_like(flat, dtype=torch.bfloat16)
    _Tools(seed, step, max(1, flat.numel()), flat.device).round_into(result, flat)
    return result.view(values.shape)


# Moments in 8 bits --------------------------------------------------------------------------------


def _eight_bit(
    groups: list[dict[str, Any]], common: dict[str, Any], rule: Rule, seed: int
) -> torch.optim.Optimizer:
    if rule == "stochastic_rounding" or not _installed("bitsandbytes"):
        if not _installed("torchao"):
            raise _problem("optimizer", optimizer_fault(TrainingArguments(optimizer="adamw_8bit")))
        return _torchao(groups, common, rule, seed)
    made: Any = importlib.import_module("bitsandbytes.optim").AdamW8bit
    found: torch.optim.Optimizer = made(groups, **common)
    return found


def _torchao(
    groups: list[dict[str, Any]], common: dict[str, Any], rule: Rule, seed: int
) -> torch.optim.Optimizer:
    made: Any = importlib.import_module("torchao.optim").AdamW8bit

    class SeededAdamW8bit(made):  # type: ignore[misc]
        """Rounds by seed and step, alike on all processes, and has plain tensors as its state."""

        done = 0

        def step(self, closure: Any = None) -> Any:
            self.done += 1
            device = self.param_groups[0]["params"][0].device
            mixed = int(np.random.SeedSequence([seed, self.done]).generate_state(1, np.uint64)[0])
            with torch.random.fork_rng([] if device.type == "cpu" else [device]):
                torch.manual_seed(mixed >> 1)
                return super().step(closure)

        def state_dict(self) -> dict[str, Any]:
            found: dict[str, Any] = super().state_dict()
            state = {index: _plain(entry) for index, entry in found["state"].items()}
            return {**found, "state": state}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict({**state_dict, "state": {}})
            _put_back(self, state_dict["state"])
            for parameter, entry in self.state.items():
                self.done = max(self.done, int(entry["step"]))
                for name, value in entry.items():
                    if isinstance(value, Mapping):
                        entry[name] = self._new_buffer(parameter, name == "exp_avg")
                        for part, tensor in value.items():
                            getattr(entry[name], part).copy_(tensor)

    return SeededAdamW8bit(groups, **common, bf16_stochastic_round=rule == "stochastic_rounding")


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """State of a parameter with every tensor that is made of others as a mapping of these."""
    return {
        name: {part: getattr(value, part) for part in value.__tensor_flatten__()[0]}
        if hasattr(value, "__tensor_flatten__")
        else value
        for name, value in entry.items()
    }


def _put_back(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Fill the state of an optimizer, every tensor in its own type.

    torch itself would round what belongs to a bfloat16 weight to bfloat16.
    """
    for index, parameter in enumerate(_parameters(optimizer)):
        if index in state:
            optimizer.state[parameter] = {
                name: _moved(value, torch.device("cpu") if name == "step" else parameter.device)
                for name, value in state[index].items()
            }


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    return value


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
