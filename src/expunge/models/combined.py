"""Several models that answer as one: what an inference-time unlearning method produces.

Importing this module makes `AutoConfig` and `AutoModelForCausalLM` of transformers know the type.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from expunge.core.errors import InputError
from expunge.models.combine import find_rule
from expunge.models.combined_folder import MODEL_TYPE
from expunge.models.generate import forward_options

# Entries of the logits that are combined at once while nothing is trained: a rule needs several
# temporary copies of what it works on.
CHUNK = 2**24


class CombinedConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of a `CombinedModel`: the rule, and what others ask of any language model's config.

    Args:
        rule: Key of `RULES`.
        options: Options of the rule; its defaults where left out.
        vocab_size: Size of the common vocabulary.
        hidden_size: Width of the first part.
        num_hidden_layers: Decoder layers of all parts together, as the cache counts them.
        max_position_embeddings: Most tokens that every part can look at; None if no part says.
        bos_token_id: Beginning of a sequence.
        eos_token_id: End of a sequence.
        pad_token_id: Filling of short rows.
        use_cache: Keep keys and values while generating.
        **kwargs: What every config takes.

    Raises:
        InputError: The rule is unknown or does not take these options.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        rule: str = "uld",
        options: Mapping[str, Any] | None = None,
        vocab_size: int = 0,
        hidden_size: int = 0,
        num_hidden_layers: int = 0,
        max_position_embeddings: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        values, problems = find_rule(rule).check(dict(options or {}))
        if problems:
            raise InputError(problems)
        self.rule = rule
        self.options = values
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = use_cache
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id


def combine_models(
    rule: str, parts: Mapping[str, PreTrainedModel], **options: Any
) -> CombinedModel:
    """One model that answers with the combined logits of several.

    The parts are taken as they are, not copied. The tokens that end an answer and the other
    generation settings are those of the first part.

    Args:
        rule: Key of `RULES`, such as "uld".
        parts: The models by the names the rule has for them, such as target and assistant.
        **options: Options of the rule.

    Raises:
        InputError: The rule is unknown, has other parts or options, or the vocabularies differ.
    """
    wanted = find_rule(rule).parts
    if set(parts) != set(wanted):
        raise InputError(
            f"{rule} combines {', '.join(wanted)}; it was given {', '.join(parts) or 'nothing'}"
        )
    ordered = {name: parts[name] for name in wanted}
    configs = {name: _text_config(part) for name, part in ordered.items()}
    sizes = {name: int(config.vocab_size) for name, config in configs.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(vocabulary_fault(sizes))
    first = configs[wanted[0]]
    lengths = [getattr(config, "max_position_embeddings", None) for config in configs.values()]
    config = CombinedConfig(
        rule=rule,
        options=options,
        vocab_size=sizes[wanted[0]],
        hidden_size=first.hidden_size,
        num_hidden_layers=sum(_num_cache_layers(part) for part in ordered.values()),
        max_position_embeddings=min((n for n in lengths if isinstance(n, int)), default=None),
        bos_token_id=getattr(first, "bos_token_id", None),
        eos_token_id=getattr(first, "eos_token_id", None),
        pad_token_id=getattr(first, "pad_token_id", None),
        dtype=ordered[wanted[0]].dtype,
        architectures=[CombinedModel.__name__],
    )
    return CombinedModel(config, ordered)


def vocabulary_fault(sizes: Mapping[str, int]) -> str:
    """What to tell somebody whose parts have vocabularies of different sizes."""
    listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
    return (
        f"the parts must share one vocabulary, but {listed} tokens. Make all of them from the same "
        "model, with the same tokenizer"
    )


class CombinedModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A causal language model whose logits are made from those of its parts.

    The key-value cache is one ordinary `DynamicCache` that holds the layers of all parts one after
    the other; whoever selects, reorders or crops it does so for every part at once.

    Args:
        config: Made by `combine_models`.
        parts: The models by name, in the rule's order.

    Raises:
        InputError: There are no parts.
    """

    config_class = CombinedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    # The parts choose their own implementation; these only keep transformers from objecting.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self, config: CombinedConfig, parts: Mapping[str, PreTrainedModel] | None = None
    ) -> None:
        super().__init__(config)
        if not parts:
            raise InputError(
                "a combined model is made of other models: use combine_models, or load a folder "
                "that holds them"
            )
        self.loss_type = "ForCausalLM"
        self._rule = find_rule(config.rule)
        for name in self._rule.parts:
            self.add_module(name, parts[name])
        self._num_layers = [_num_cache_layers(part) for part in self.parts.values()]
        self.generation_config = copy.deepcopy(self._first.generation_config)
        self.training = self._first.training
        self.post_init()

    @property
    def parts(self) -> dict[str, PreTrainedModel]:
        """The models by name, the one to unlearn first."""
        return {name: getattr(self, name) for name in self._rule.parts}

    @property
    def _first(self) -> PreTrainedModel:
        return getattr(self, self._rule.parts[0])

    def init_weights(self) -> None:
        """Do nothing: the parts come with their weights."""

    def get_input_embeddings(self) -> Any:
        """Embeddings of the model to unlearn."""
        return self._first.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """None: no single layer makes the logits."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run all parts on the same tokens.

        Args:
            input_ids: Tokens, [B, T].
            attention_mask: 1 for a real token, [B, T] or, with a cache, as long as the past too.
            position_ids: Places of the tokens, [B, T].
            past_key_values: A `DynamicCache`, empty or filled by this model.
            labels: Tokens, -100 where one does not count, [B, T]; they are shifted here.
            use_cache: Return the cache.
            logits_to_keep: The last so many positions, or the positions themselves; 0 for all.
            output_hidden_states: Also return those of the model to unlearn.
            output_attentions: Also return those of the model to unlearn.
            **kwargs: Handed to every part that takes them.

        Returns:
            Combined logits, at least float32, [B, T, V]; the loss if there are labels; the cache.

        Raises:
            InputError: The cache is not one that this model can use.
        """
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        caches = self._split(past_key_values)
        logits = []
        first: Any = None
        for part, cache in zip(self.parts.values(), caches, strict=True):
            arguments = {
                **kwargs,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "past_key_values": cache,
                "use_cache": use_cache,
            }
            if first is None:
                arguments["output_hidden_states"] = output_hidden_states
                arguments["output_attentions"] = output_attentions
            result = _call(part, input_ids, logits_to_keep, arguments)
            logits.append(result.logits)
            if first is None:
                first = result
        combined = self._combine(logits)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=combined, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=combined,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=first.hidden_states,
            attentions=first.attentions,
        )

    def _combine(self, logits: list[Tensor]) -> Tensor:
        """The rule, chunk by chunk where no gradient has to flow, [B, T, V]."""
        rows = [part.flatten(0, -2) for part in logits]
        size = max(1, CHUNK // rows[0].shape[-1])
        options = self.config.options
        if torch.is_grad_enabled() or len(rows[0]) <= size:
            return self._rule.combine(*logits, **options)
        kind = torch.promote_types(rows[0].dtype, torch.float32)
        result = torch.empty_like(rows[0], dtype=kind)
        for start in range(0, len(result), size):
            chunk = slice(start, start + size)
            result[chunk] = self._rule.combine(*(part[chunk] for part in rows), **options)
        return result.view(logits[0].shape)

    def _split(self, cache: Cache | None) -> list[Cache | None]:
        """A cache for every part that shares its layers with the common one."""
        if cache is None:
            return [None] * len(self.parts)
        if not isinstance(cache, DynamicCache):
            raise InputError(
                f"a combined model cannot use a {type(cache).__name__}; use a DynamicCache, that "
                'is, leave out cache_implementation or set it to "dynamic"'
            )
        if cache.get_seq_length() == 0:
            # Whoever made it knew only the sum of the layers, not which of them are sliding.
            cache.layers = [
                layer
                for part in self.parts.values()
                for layer in DynamicCache(config=part.config).layers
            ]
        elif len(cache.layers) != sum(self._num_layers):
            raise InputError(
                f"the cache has {len(cache.layers)} layers and the parts together have "
                f"{sum(self._num_layers)}; it comes from another model. Start with an empty one"
            )
        views: list[Cache | None] = []
        start = 0
        for count in self._num_layers:
            views.append(Cache(layers=cache.layers[start : start + count]))
            start += count
        return views

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the config here and every part into a sub-folder of its name, as safetensors.

        Args:
            save_directory: Where.
            **kwargs: Handed to `save_pretrained` of every part, such as max_shard_size.

        Raises:
            ValueError: Weights that are not the model's own, or an upload, are asked for.
        """
        refused = [name for name in ("state_dict", "push_to_hub") if kwargs.get(name)]
        if refused:
            raise ValueError(f"a combined model is saved without {' and '.join(refused)}")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.dtype = self.dtype
        self.config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)
        for name, part in self.parts.items():
            part.save_pretrained(folder / name, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: CombinedConfig | None = None,
        output_loading_info: bool = False,
        subfolder: str = "",
        **kwargs: Any,
    ) -> Any:
        """Load what `save_pretrained` wrote. Code that comes with a part is never run.

        Args:
            pretrained_model_name_or_path: A folder or a hub name.
            *model_args: None exist.
            config: The config, read from there if None.
            output_loading_info: Also return the tensors that were missing.
            subfolder: Folder of the combined model inside the given place.
            **kwargs: As for any model: dtype, revision, attn_implementation, device_map, ...

        Raises:
            InputError: The parts do not go together.
        """
        if model_args:
            raise TypeError("a combined model takes no further arguments")
        place = pretrained_model_name_or_path
        for name in ("trust_remote_code", "adapter_kwargs", "use_safetensors", "_from_auto"):
            kwargs.pop(name, None)
        hub = {
            name: kwargs[name]
            for name in ("cache_dir", "force_download", "local_files_only", "revision", "token")
            if name in kwargs
        }
        if config is None:
            config = CombinedConfig.from_pretrained(place, subfolder=subfolder, **hub)
        # The auto class has moved this one into the config.
        attention = kwargs.pop("attn_implementation", None) or config._attn_implementation
        parts, missing = {}, []
        for name in find_rule(config.rule).parts:
            parts[name], info = AutoModelForCausalLM.from_pretrained(
                place,
                subfolder=f"{subfolder}/{name}".lstrip("/"),
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=attention,
                output_loading_info=True,
                **kwargs,
            )
            missing += [f"{name}.{key}" for key in info["missing_keys"]]
        model = combine_models(config.rule, parts, **config.options)
        with contextlib.suppress(OSError):  # without one of its own, the first part's stays
            model.generation_config = GenerationConfig.from_pretrained(
                place, subfolder=subfolder, **hub
            )
        model.config.name_or_path = os.fspath(place)
        model.eval()
        return (model, {"missing_keys": set(missing)}) if output_loading_info else model


def _call(
    part: PreTrainedModel, input_ids: Tensor | None, keep: int | Tensor, arguments: dict[str, Any]
) -> Any:
    """The part's output with only the logits to keep."""
    options = forward_options(part)
    arguments = {
        name: value
        for name, value in arguments.items()
        if value is not None and (name in options or "kwargs" in options)
    }
    selects = "logits_to_keep" in options
    if selects:
        arguments["logits_to_keep"] = keep
    result = part(input_ids=input_ids, **arguments)
    if not selects:
        kept = slice(-keep, None) if isinstance(keep, int) else keep
        result.logits = result.logits[:, kept]
    return result


def _text_config(part: PreTrainedModel) -> Any:
    return part.config.get_text_config(decoder=True)


def _num_cache_layers(part: PreTrainedModel) -> int:
    return len(DynamicCache(config=part.config).layers)


AutoConfig.register(MODEL_TYPE, CombinedConfig, exist_ok=True)
AutoModelForCausalLM.register(CombinedConfig, CombinedModel, exist_ok=True)
