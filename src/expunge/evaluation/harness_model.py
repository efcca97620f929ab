"""A loaded model as the lm-evaluation-harness wants it. Importing this needs the extra lm-eval."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

from expunge.evaluation.harness_tasks import SEEDS
from expunge.models.generate import evaluating

MAX_WARNINGS = 5


class HarnessModel(HFLM):  # type: ignore[misc]
    """The harness' own model class around a model that is in memory already.

    The tokenizer is copied, since the harness changes it. `add_bos=True` holds for tokenizers too
    that do not start a text with that token by themselves: the harness would only ask them to.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        batch_size: Questions per batch, or `auto`.
        add_bos: Start prompts with the beginning-of-sequence token; None: as the tokenizer does.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: Literal["auto"] | int,
        add_bos: bool | None,
    ) -> None:
        logger = logging.getLogger("lm_eval")
        level = logger.level
        # It warns that a model in memory keeps its own settings, which is what is wanted.
        logger.setLevel(logging.ERROR)
        try:
            super().__init__(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=batch_size,
                add_bos_token=add_bos,
            )
        finally:
            logger.setLevel(level)
        self._bos: str | None = self.tokenizer.bos_token if add_bos else None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> Any:
        """Token ids of a text; a continuation (`add_special_tokens=False`) has no beginning."""
        if add_special_tokens is None:
            string = self._begun(string)
        return super().tok_encode(string, add_special_tokens=add_special_tokens, **more)

    def tok_batch_encode(self, strings: list[str], *args: Any, **more: Any) -> Any:
        """Token ids and mask of a batch of prompts."""
        return super().tok_batch_encode([self._begun(text) for text in strings], *args, **more)

    def _begun(self, text: str) -> str:
        # The harness sees the token's text and adds no second one.
        if self._bos is None or text.startswith(self._bos):
            return text
        return self._bos + text


@contextlib.contextmanager
def undisturbed(model: Any, show_progress: bool) -> Iterator[list[str]]:
    """The harness' surroundings: its seeds and silence; everything is put back behind it.

    Yields:
        Its warnings, the first few, each once; filled on the way.
    """
    device = next(model.parameters()).device
    states = random.getstate(), np.random.get_state()
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        )
        if not show_progress:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        warnings = stack.enter_context(collected_warnings())
        random.seed(SEEDS[0])
        np.random.seed(SEEDS[1])
        torch.manual_seed(SEEDS[1])
        try:
            yield warnings
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """What the harness logs as a warning inside the block, instead of showing it."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            if text not in collected and len(collected) < MAX_WARNINGS:
                collected.append(text)

    logger = logging.getLogger("lm_eval")
    handler, propagates = Collector(level=logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield collected
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
