"""Tables of what the start model says of every text that training will visit, computed once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.core.errors import RunError
from expunge.core.files import atomic_folder
from expunge.core.fingerprint import fingerprint, fingerprint_chunks
from expunge.data.collate import collate
from expunge.data.encode import Example
from expunge.data.streams import StreamPlan, Streams
from expunge.models.forward import Rows, StreamRequest
from expunge.models.outputs import Positions, TokenOutputs
from expunge.training.passes import Passes, gather_objects, inference

FORMAT = 1
PART_BYTES = 256 * 2**20  # of a file; what a table holds in memory while it is written


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A table that is to be made.

    Attributes:
        stream: Name of the stream.
        examples: The texts that training will visit, each once.
        fields: Fields of `TokenOutputs` to hold: `ref_logps` as they are, `ref_activations` as they
            are, and `ref_logits` as the hidden states that the output head makes them of.
        positions: Logit positions of the last two.
        dtype: Type that the head computes in, and so of its hidden states.
    """

    stream: str
    examples: Sequence[Example]
    fields: frozenset[str]
    positions: Positions
    dtype: torch.dtype

    def nbytes(self, width: int) -> int:
        """Bytes of the table at most, with hidden states of `width` numbers."""
        whole = self.positions == "nonpad"
        states = sum(
            len(example.input_ids) if whole else example.num_labels + 1 for example in self.examples
        )
        per_state = self.dtype.itemsize * ("ref_logits" in self.fields)
        per_state += 4 * ("ref_activations" in self.fields)
        labels = sum(example.num_labels for example in self.examples)
        return states * per_state * width + 4 * labels * ("ref_logps" in self.fields)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Values of the texts of a stream.

    Attributes:
        places: Place of every text, by `text_key`.
        values: For each field, one tensor per text: [n] or [n, D], with n positions in order.
    """

    places: Mapping[bytes, int]
    values: Mapping[str, Sequence[Tensor]]

    def of(self, field: str, keys: Iterable[bytes]) -> list[Tensor]:
        """Values of some texts.

        Raises:
            RunError: A text is not in the table.
        """
        try:
            return [self.values[field][self.places[key]] for key in keys]
        except KeyError:
            raise RunError(
                "a batch holds a text that was not in the plan of the training when the reference "
                "values were computed"
            ) from None


def planned_examples(
    streams: Streams, plan: StreamPlan, stream: str, num_steps: int
) -> list[Example]:
    """The texts of a stream that the steps of a training visit, each once, in order of visit.

    Also for streams whose texts are drawn anew at every visit: the plan knows what will be drawn.
    """
    found: dict[bytes, Example] = {}
    seen: set[int] = set()  # streams hand out the same object for the same text again
    for step in range(num_steps):
        for example in streams.examples(stream, plan.step(step)):
            if id(example) not in seen:
                seen.add(id(example))
                found.setdefault(text_key(example.input_ids, example.num_prompt), example)
    return list(found.values())


def text_key(input_ids: Sequence[int], num_prompt: int) -> bytes:
    """What a text is known by: its tokens and where its labels begin."""
    numbers = np.asarray([num_prompt, *input_ids], dtype=np.int64)
    return hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()


def row_keys(rows: Rows) -> list[bytes]:
    """`text_key` of every valid row of a batch."""
    attended = rows.attention_mask.bool().cpu().numpy()
    tokens = rows.input_ids.cpu().numpy()
    labels = (rows.labels != -100).sum(-1).tolist()
    keys = []
    for i in rows.valid.nonzero()[:, 0].tolist():
        own = tokens[i][attended[i]].tolist()
        keys.append(text_key(own, len(own) - labels[i]))
    return keys


def table_positions(out: TokenOutputs, positions: Positions) -> Tensor:
    """Logit positions of a record that a table has states for, in valid rows, bool, [B, T]."""
    return out.positions("labels") | out.positions(positions)


# Computing ----------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Some rows of a table: their places and the values of each field."""

    places: list[int]
    values: dict[str, list[Tensor]]


def make_table(
    wanted: Wanted, model: nn.Module, passes: Passes, cache: TableCache | None, key: str = ""
) -> Table:
    """Run the texts through a model, in batches of similar length shared among the processes.

    With a cache the values are read back from disk as they are needed and take no memory.

    Args:
        wanted: The texts, and what is kept of them.
        model: The start model, or the one that takes its place.
        passes: How texts are run.
        cache: Where the table is stored.
        key: Name of the table there.
    """
    accelerator = passes.accelerator
    parts: Callable[[], Iterable[_Part]] = partial(_computed, wanted, model, passes)
    if accelerator.num_processes > 1:
        gathered = gather_objects(accelerator, list(parts()))
        parts = partial(iter, gathered)
    if cache is not None:
        if accelerator.is_main_process:
            # A cache that cannot be written costs only time.
            with suppress(RunError, SafetensorError, OSError):
                cache.save(key, parts())
        accelerator.wait_for_everyone()
        stored = cache.load(key, wanted)
        if stored is not None:
            return stored
    values = {name: [_NOTHING] * len(wanted.examples) for name in sorted(wanted.fields)}
    for part in parts():
        for name, rows in part.values.items():
            for place, row in zip(part.places, rows, strict=True):
                values[name][place] = row
    return Table(places=_places(wanted), values=values)


def table_name(wanted: Wanted, passes: Passes, model: str) -> str:
    """Fingerprint of everything that determines a table.

    Args:
        wanted: The texts, and what is kept of them.
        passes: How texts are run.
        model: Fingerprint of the model.
    """
    states = wanted.fields - {"ref_logps"}
    return fingerprint(
        {
            "format": FORMAT,
            "model": model,
            "texts": fingerprint_chunks(_places(wanted)),
            "fields": sorted(wanted.fields),
            "positions": wanted.positions if states else "labels",
            "block": passes.block if "ref_activations" in states else None,
            "dtype": str(wanted.dtype) if states else None,
            "autocast": passes.precision.autocast,
            "device": passes.accelerator.device.type,
        }
    )


_NOTHING = torch.zeros(0)


def _places(wanted: Wanted) -> dict[bytes, int]:
    return {
        text_key(example.input_ids, example.num_prompt): i
        for i, example in enumerate(wanted.examples)
    }


def _computed(wanted: Wanted, model: nn.Module, passes: Passes) -> Iterator[_Part]:
    """This process's share of a table, batch by batch."""
    accelerator = passes.accelerator
    order = sorted(
        range(len(wanted.examples)), key=lambda place: len(wanted.examples[place].input_ids)
    )
    batches = _by_tokens(order, wanted.examples, passes.batch_tokens)
    reads = set()
    if "ref_logits" in wanted.fields:
        reads.add("hidden")
    if "ref_activations" in wanted.fields:
        reads.add("activations")
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        examples = [wanted.examples[place] for place in batch]
        rows = collate(examples, pad_token_id=passes.pad_token_id).to(accelerator.device)
        request = StreamRequest(rows=rows, reads=frozenset(reads), positions=wanted.positions)
        with inference(model):
            out = passes.forward(model, {wanted.stream: request})[wanted.stream]
        yield _Part(list(batch), _values(out, wanted))


def _values(out: TokenOutputs, wanted: Wanted) -> dict[str, list[Tensor]]:
    where = table_positions(out, wanted.positions)
    values: dict[str, tuple[Tensor, Tensor]] = {}
    if "ref_logps" in wanted.fields:
        values["ref_logps"] = out.logps, out.positions("labels")
    if "ref_logits" in wanted.fields:
        values["ref_logits"] = out.own_states().to(wanted.dtype), where
    if "ref_activations" in wanted.fields:
        assert out.activations is not None, "activations were asked for"
        values["ref_activations"] = out.activations, where
    return {
        name: [row[kept].detach().cpu() for row, kept in zip(every, mask, strict=True)]
        for name, (every, mask) in values.items()
    }


def _by_tokens(
    order: Sequence[int], examples: Sequence[Example], batch_tokens: int
) -> list[list[int]]:
    """Places in batches of at most so many padded tokens; `order` is by length, short first."""
    batches: list[list[int]] = []
    for place in order:
        longest = len(examples[place].input_ids)
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


# On disk ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TableCache:
    """Tables of former runs, one folder each.

    Attributes:
        folder: Where they are.
        model: Fingerprint of the model that reference values come from, and of the type its weights
            are loaded in.
        max_bytes: Size of all tables together; the ones unused for longest are deleted beyond that.
    """

    folder: Path
    model: str
    max_bytes: int = 20 * 2**30

    def has_room(self, nbytes: int) -> bool:
        """Whether a table of this size may be written: it leaves half of the disk's rest free."""
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        return nbytes <= min(self.max_bytes, shutil.disk_usage(place).free // 2)

    def load(self, key: str, wanted: Wanted) -> Table | None:
        """A stored table, mapped into memory and not read; None if it is missing or damaged."""
        values: dict[str, list[Tensor | None]] = {
            name: [None] * len(wanted.examples) for name in wanted.fields
        }
        folder = self.folder / key
        try:
            for file in sorted(folder.glob("*.safetensors")):
                part = load_file(file)
                for name in wanted.fields:
                    rows = torch.split(part[name], part[f"{name}.lengths"].tolist())
                    for place, row in zip(part["places"].tolist(), rows, strict=True):
                        values[name][place] = row
            os.utime(folder)
        except (OSError, ValueError, KeyError, IndexError, RuntimeError, SafetensorError):
            return None
        if any(row is None for rows in values.values() for row in rows):
            return None
        complete = {name: [row for row in rows if row is not None] for name, rows in values.items()}
        return Table(places=_places(wanted), values=complete)

    def save(self, key: str, parts: Iterable[_Part]) -> None:
        """Write a table at once, in files that are filled one after the other.

        Raises:
            RunError: It cannot be written.
        """
        with atomic_folder(self.folder / key) as temporary:
            waiting: list[_Part] = []
            number = size = 0
            for part in parts:
                waiting.append(part)
                size += sum(row.nbytes for rows in part.values.values() for row in rows)
                if size >= PART_BYTES:
                    _write(temporary / f"part-{number:05d}.safetensors", waiting)
                    waiting, number, size = [], number + 1, 0
            if waiting:
                _write(temporary / f"part-{number:05d}.safetensors", waiting)
        self._forget_old(key)

    def _forget_old(self, key: str) -> None:
        """Delete tables until the rest fits; never the one that was just written."""
        others = [f for f in self.folder.iterdir() if f.is_dir() and f.name != key]
        others = [folder for folder in others if not folder.name.startswith(".")]
        total = _size(self.folder / key)
        for folder in sorted(others, key=_last_use, reverse=True):
            total += _size(folder)
            if total > self.max_bytes:
                shutil.rmtree(folder, ignore_errors=True)


def _write(file: Path, parts: Sequence[_Part]) -> None:
    tensors = {"places": torch.tensor([place for part in parts for place in part.places])}
    for name in parts[0].values:
        rows = [row for part in parts for row in part.values[name]]
        tensors[name] = torch.cat(rows)
        tensors[f"{name}.lengths"] = torch.tensor([len(row) for row in rows])
    save_file(tensors, file)


def _size(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        with suppress(OSError):  # another run may delete it meanwhile
            total += file.stat().st_size
    return total


def _last_use(folder: Path) -> float:
    with suppress(OSError):
        return folder.stat().st_mtime
    return 0.0
