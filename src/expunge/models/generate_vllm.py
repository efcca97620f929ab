"""Greedy answers by vLLM instead of transformers: for many prompts on a GPU.

vLLM is an extra, `pip install "expunge[vllm]"`, and is imported nowhere else. It reads a model from
a folder; one that is in memory is saved into a temporary folder first. Its kernels round in another
way, so texts may part where two tokens are equally likely.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.errors import InputError, RunError
from expunge.models.combined_folder import MODEL_TYPE
from expunge.models.generate import Generation, Indexed, default_stop_ids, plan_jobs

PART = 1024
"""Prompts that vLLM gets at once, so that a caller can save as it goes."""

MEMORY_SHARE = 0.9
"""Share of the free GPU memory that vLLM may take; the model itself stays where it is."""


def check_vllm() -> None:
    """See that vLLM is there, without importing it.

    Raises:
        InputError: It is not installed.
    """
    try:
        found = importlib.util.find_spec("vllm") is not None
    except ValueError:  # a module without a spec
        found = True
    if not found:
        raise InputError(
            "the generator vllm is not installed; install it with "
            '`pip install "expunge[vllm]"`, or set evaluation.generator to transformers'
        )


def generate_batches_vllm(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: Any,
    max_new_tokens: int | Sequence[int],
    stop_ids: Collection[int] | None = None,
    folder: Path | str | None = None,
) -> Iterator[list[Indexed]]:
    """Continue every prompt greedily; in parts, in the order of the prompts.

    Args:
        model: A causal language model, as transformers has it.
        prompts: Token ids; none of them empty.
        tokenizer: Turns tokens into text.
        max_new_tokens: Limit for all prompts, or one for each. Never more than the model's context
            leaves room for.
        stop_ids: Tokens that end an answer; those of the model's generation config and the
            tokenizer's end-of-sequence token if None.
        folder: Where this very model is saved; None: it is saved into a temporary folder.

    Raises:
        InputError: vLLM is not installed, a prompt is empty or too long, or the model cannot be
            saved as a folder that vLLM reads.
        RunError: vLLM gave up on a prompt.
    """
    check_vllm()
    jobs = plan_jobs(model, prompts, max_new_tokens)
    stops = frozenset(stop_ids) if stop_ids is not None else default_stop_ids(model, tokenizer)
    nothing = Generation(text="", token_ids=(), finished=False)
    silent = [Indexed(job.position, nothing) for job in jobs if not job.limit]
    if silent:
        yield silent
    asked = [job for job in jobs if job.limit]
    if not asked:
        return
    from vllm import LLM, SamplingParams, TokensPrompt

    longest = max(len(job.prompt) + job.limit for job in asked)
    with _folder_of(model, tokenizer, folder) as place:
        engine: Any = LLM(model=str(place), max_model_len=longest, **_engine_options(model))
        try:
            for start in range(0, len(asked), PART):
                part = asked[start : start + PART]
                outputs = engine.generate(
                    [TokensPrompt(prompt_token_ids=list(job.prompt)) for job in part],
                    [
                        SamplingParams(
                            temperature=0.0,
                            max_tokens=job.limit,
                            # Our stops decide, and not what vLLM takes from the folder.
                            ignore_eos=True,
                            stop_token_ids=sorted(stops),
                            detokenize=False,
                        )
                        for job in part
                    ],
                    use_tqdm=False,
                )
                yield [
                    Indexed(job.position, _generation(output.outputs[0], stops, tokenizer))
                    for job, output in zip(part, outputs, strict=True)
                ]
        finally:
            del engine
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _engine_options(model: nn.Module) -> dict[str, Any]:
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    options: dict[str, Any] = {"dtype": dtype, "skip_tokenizer_init": True, "seed": 0}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        options["gpu_memory_utilization"] = round(MEMORY_SHARE * free / total, 3)
    return options


def _generation(output: Any, stops: frozenset[int], tokenizer: Any) -> Generation:
    """What one completion of vLLM says, without the token that ended it."""
    if output.finish_reason not in ("stop", "length"):
        raise RunError(
            f"vLLM ended an answer with {output.finish_reason!r}, not with a stop token or at the "
            "limit; look at its log, or set evaluation.generator to transformers"
        )
    tokens = [int(token) for token in output.token_ids]
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    kept = tokens[:end]
    return Generation(
        text=str(tokenizer.decode(kept, skip_special_tokens=True)),
        token_ids=tuple(kept),
        finished=end is not None or output.finish_reason == "stop",
    )


@contextlib.contextmanager
def _folder_of(model: Any, tokenizer: Any, folder: Path | str | None) -> Iterator[Path]:
    """A folder with the model for as long as this lasts."""
    if folder is not None and (Path(folder) / "config.json").is_file():
        yield Path(folder)
        return
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind == MODEL_TYPE or hasattr(model, "peft_config") or not hasattr(model, "save_pretrained"):
        raise InputError(
            "vLLM reads a model from a folder, and this one cannot be saved as one: it is combined "
            "of several or carries an adapter. Merge the adapter, or set evaluation.generator to "
            "transformers"
        )
    with tempfile.TemporaryDirectory(prefix="expunge-vllm-") as place:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        yield Path(place)
