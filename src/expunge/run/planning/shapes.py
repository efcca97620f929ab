"""The shape of a model: what its config says about the number and the sizes of its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.errors import InputError, Problems, did_you_mean

BUILTIN = "builtin:smollm2-135m-instruct"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class Weight(NamedTuple):
    """One parameter: its name as in `transformers`, its numbers, and whether it is a matrix."""

    name: str
    size: int
    is_matrix: bool


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Dimensions of a decoder-only language model.

    Attributes:
        name: What tables call it.
        layers: Decoder blocks.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        inner: Width of the feed-forward part, of one expert where there are several.
        vocab: Entries of the vocabulary.
        tied: The output head is the input embedding.
        experts: Experts of a block, 0 for a dense feed-forward part.
        experts_per_token: Experts that a token goes through.
        gated: The feed-forward part has three matrices (gate, up, down), else two.
        qkv_bias: Queries, keys and values have biases.
        bias: So have all other linear layers of a block.
        head_bias: So has the output head.
        norms: Norms of a block.
        norm_bias: Norms have a bias beside their scale.
        qk_norm: Queries and keys of every head are normalised.
        source: Where the numbers come from.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    tied: bool = False
    experts: int = 0
    experts_per_token: int = 0
    gated: bool = True
    qkv_bias: bool = False
    bias: bool = False
    head_bias: bool = False
    norms: int = 2
    norm_bias: bool = False
    qk_norm: bool = False
    source: str = ""

    @property
    def query(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all keys of a token, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> tuple[tuple[str, int, int], ...]:
        """Linear layers of a block that every token goes through: name, inputs, outputs."""
        hidden, query, kv, inner = self.hidden, self.query, self.kv, self.inner
        out = "o_proj" if self.gated else "dense"
        found = [
            ("self_attn.q_proj", hidden, query),
            ("self_attn.k_proj", hidden, kv),
            ("self_attn.v_proj", hidden, kv),
            (f"self_attn.{out}", query, hidden),
        ]
        if self.experts:
            found.append(("mlp.gate", hidden, self.experts))
        elif self.gated:
            found += [("mlp.gate_proj", hidden, inner), ("mlp.up_proj", hidden, inner)]
            found.append(("mlp.down_proj", inner, hidden))
        else:
            found += [("mlp.fc1", hidden, inner), ("mlp.fc2", inner, hidden)]
        return tuple(found)

    def weights(self) -> Iterator[Weight]:
        """Every parameter, tied ones once, in the order of the model."""
        yield Weight("model.embed_tokens.weight", self.vocab * self.hidden, True)
        for layer in range(self.layers):
            yield from self._block(f"model.layers.{layer}.")
        yield from self._norm("model.norm")
        if not self.tied:
            yield Weight("lm_head.weight", self.vocab * self.hidden, True)
        if self.head_bias:
            yield Weight("lm_head.bias", self.vocab, False)

    def _block(self, prefix: str) -> Iterator[Weight]:
        for name, inputs, outputs in self.matrices:
            yield Weight(f"{prefix}{name}.weight", inputs * outputs, True)
            is_qkv = name.endswith(("q_proj", "k_proj", "v_proj"))
            if self.qkv_bias if is_qkv else self.bias:
                yield Weight(f"{prefix}{name}.bias", outputs, False)
        if self.experts:
            pairs = (("gate_up_proj", 2), ("down_proj", 1))
            for name, number in pairs:
                size = number * self.experts * self.hidden * self.inner
                yield Weight(f"{prefix}mlp.experts.{name}", size, True)
        if self.qk_norm:
            yield Weight(f"{prefix}self_attn.q_norm.weight", self.head_dim, False)
            yield Weight(f"{prefix}self_attn.k_norm.weight", self.head_dim, False)
        for number in range(self.norms):
            yield from self._norm(f"{prefix}norm_{number}")

    def _norm(self, name: str) -> Iterator[Weight]:
        yield Weight(f"{name}.weight", self.hidden, False)
        if self.norm_bias:
            yield Weight(f"{name}.bias", self.hidden, False)

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(weight.size for weight in self.weights())

    @property
    def block_matrices(self) -> int:
        """Numbers in the matrices of all blocks, those of all experts included."""
        own = sum(inputs * outputs for _, inputs, outputs in self.matrices)
        return self.layers * (own + 3 * self.experts * self.hidden * self.inner)

    @property
    def active_matrices(self) -> int:
        """Numbers in the matrices of all blocks that one token is multiplied with."""
        own = sum(inputs * outputs for _, inputs, outputs in self.matrices)
        return self.layers * (own + 3 * self.experts_per_token * self.hidden * self.inner)

    @property
    def head(self) -> int:
        """Numbers in the matrix of the output head."""
        return self.vocab * self.hidden

    def adapter_parameters(self, rank: int, modules: Sequence[str] = ("all-linear",)) -> int:
        """Numbers in low-rank adapters. Experts that are stored as one tensor get none.

        Args:
            rank: Rank of every adapter.
            modules: Last parts of the names of linear layers, or all-linear.
        """
        return self.layers * sum(
            rank * (inputs + outputs)
            for name, inputs, outputs in self.matrices
            if "all-linear" in modules or name.rpartition(".")[2] in modules
        )

    def trained(self, pattern: str) -> tuple[int, int]:
        """Parameters whose name a pattern finds, and the first block among them.

        The block is 0 where an embedding trains, and `layers` where only what is behind the blocks
        does: only from there on the backward pass needs anything.
        """
        count, first = 0, self.layers
        for weight in self.weights():
            if pattern != "all" and re.search(pattern, weight.name) is None:
                continue
            count += weight.size
            place = re.match(r"model\.layers\.(\d+)\.", weight.name)
            at = int(place[1]) if place else (0 if "embed" in weight.name else self.layers)
            first = min(first, at)
        return count, first


_LLAMA3 = "arXiv:2407.21783, table 3, and the config.json of "

SHAPES: dict[str, ModelShape] = {
    "1B": ModelShape(
        name="Llama-3.2-1B",
        layers=16,
        hidden=2048,
        heads=32,
        kv_heads=8,
        head_dim=64,
        inner=8192,
        vocab=128256,
        tied=True,
        source="config.json of meta-llama/Llama-3.2-1B",
    ),
    "8B": ModelShape(
        name="Llama-3.1-8B",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        inner=14336,
        vocab=128256,
        source=_LLAMA3 + "meta-llama/Llama-3.1-8B",
    ),
    "70B": ModelShape(
        name="Llama-3.1-70B",
        layers=80,
        hidden=8192,
        heads=64,
        kv_heads=8,
        head_dim=128,
        inner=28672,
        vocab=128256,
        source=_LLAMA3 + "meta-llama/Llama-3.1-70B",
    ),
    BUILTIN: ModelShape(
        name="SmolLM2-135M",
        layers=30,
        hidden=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        inner=1536,
        vocab=49152,
        tied=True,
        source="config.json of HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
"""Shapes that come with the package, by the name that `--sizes` takes."""

# What a family has that its config does not say, by model_type.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "mixtral": {},
    "qwen3_moe": {"qk_norm": True},
    "gemma": {"tied": True},
    "gemma2": {"tied": True, "norms": 4},
    "phi": {
        "gated": False,
        "qkv_bias": True,
        "bias": True,
        "head_bias": True,
        "norms": 1,
        "norm_bias": True,
    },
}
_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")


def shape_of(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape that a config of `transformers` describes.

    Args:
        config: What config.json holds.
        name: What tables call the model.

    Raises:
        InputError: The family is unknown, or a dimension is missing or no positive number.
    """
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise InputError(
            f"{name}: cannot plan for models of type {family!r}. "
            f"{did_you_mean(str(family), list(_FAMILIES))}"
        )
    _check(config, name)
    heads = config["num_attention_heads"]
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    inner = config["intermediate_size"]
    if family == "qwen3_moe":
        inner = config.get("moe_intermediate_size", inner)
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise InputError(f"{name}: cannot plan for blocks with and without experts in turn")
    shape = ModelShape(
        name=name,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        inner=inner,
        vocab=config["vocab_size"],
        experts=experts if family in ("mixtral", "qwen3_moe") else 0,
        experts_per_token=config.get("num_experts_per_tok") or 0 if experts else 0,
        source="its config",
    )
    if config.get("attention_bias"):
        shape = replace(shape, qkv_bias=True)
    shape = replace(shape, **_FAMILIES[family])
    return replace(shape, tied=bool(config.get("tie_word_embeddings", shape.tied)))


def _check(config: Mapping[str, Any], name: str) -> None:
    problems = Problems()
    for key in (*_NEEDED, "intermediate_size"):
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.add(f"{name} {key}", f"must be a whole number of at least 1, got {value!r}")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key) and config.get("model_type") in ("llama", "mistral"):
            problems.add(f"{name} {key}", "cannot plan for biases in this family")
    problems.raise_if_any()


def find_shape(text: str) -> ModelShape:
    """The shape called `text`: a size of the package, a model folder, or a config in JSON.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    known = {key.lower(): shape for key, shape in SHAPES.items()}
    known |= {shape.name.lower(): shape for shape in SHAPES.values()}
    if text.lower() in known:
        return known[text.lower()]
    path = Path(text).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{text}: no such size, model folder or config file. "
            f"{did_you_mean(text, list(SHAPES))}; or give a folder with config.json, or that file"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{file}: holds no config: a mapping with hidden_size and so on")
    return shape_of(config, name=path.parent.name if path.name == "config.json" else path.stem)
