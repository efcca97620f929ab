"""From the name of a judge to a folder with its files, or to the reason why there is none.

Whatever is on this machine is found without a network. The hub is asked only for a name that is
not in its local cache, and never for longer than `HUB_TIMEOUT`. Only safetensors are read, and no
Python code that comes with a model is run.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from expunge.core.errors import InputError, MissingExtraError, did_you_mean
from expunge.core.fingerprint import fingerprint, fingerprint_folder
from expunge.evaluation.judges.settings import TITLES, JudgeKind
from expunge.models.builtin_encoder import BUILTIN_ENCODER, builtin_encoder_folder
from expunge.models.checks import is_hub_name
from expunge.models.fingerprints import model_fingerprint
from expunge.models.quiet import no_progress_bars

T = TypeVar("T")

VERSION = 1
"""Raised by every change that moves the verdicts of a judge; part of its identity."""

HUB_TIMEOUT = 5.0
"""Seconds that the hub may take to say whether it has a model."""

_EXTRA = "judges"
_WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
_UNWANTED = ("onnx/*", "openvino/*")
_PICKLES = (".bin", ".pt", ".pth")
# Beside weights and config.json, what decides how a text becomes tokens and tokens a verdict.
_DECISIVE = (
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt"),
    "*.model",
)


def judge_problem(name: str, kind: JudgeKind) -> str | None:
    """Why a judge cannot be used here and what to do about it; None if it can.

    No weights are read. A name that is neither a folder nor complete in the local hub cache is
    looked up on the hub, for `HUB_TIMEOUT` seconds at most.

    Args:
        name: A folder, a hub name, or `BUILTIN_ENCODER`.
        kind: What it is to judge.
    """
    try:
        _require_extra(kind)
        if _local_folder(name, kind) is None:
            _require_on_hub(name, kind)
    except InputError as error:
        return str(error)
    return None


def judge_folder(name: str, kind: JudgeKind) -> Path:
    """The folder with a judge's files; downloads them if they are nowhere on this machine.

    Raises:
        InputError: What `judge_problem` says, or the download failed.
    """
    _require_extra(kind)
    folder = _local_folder(name, kind)
    if folder is not None:
        return folder
    _require_on_hub(name, kind)
    return _checked(name, _ask_hub(name, kind, lambda: _download(name), None), kind)


def judge_identity(name: str, kind: JudgeKind) -> dict[str, Any]:
    """What tells a judge from any other: kind, name, hash of its files, version of our code.

    Raises:
        InputError: The judge is not here and cannot be downloaded.
    """
    folder = judge_folder(name, kind)
    parts = [model_fingerprint(place) for place in _places(folder, kind)]
    return {
        "kind": kind,
        "name": name,
        "fingerprint": fingerprint([parts, fingerprint_folder(folder, _DECISIVE)]),
        "version": VERSION,
    }


def folder_fault(folder: Path, kind: JudgeKind) -> str | None:
    """What is wrong with a judge's folder as far as its small files tell; None if nothing is."""
    try:
        return _encoder_fault(folder) if kind == "encoder" else _classifier_fault(folder, kind)
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def label_fault(labels: Collection[str], kind: JudgeKind) -> str | None:
    """Why a classifier with these labels cannot judge entailment; None if it can."""
    found = [label.lower() for label in labels]
    if kind != "nli" or "entailment" in found:
        return None
    return (
        f"its labels are {', '.join(labels)}; an NLI classifier needs one called entailment. "
        "Correct id2label in its config.json, or name another classifier"
    )


def _local_folder(name: str, kind: JudgeKind) -> Path | None:
    """Where the judge is on this machine; None for a hub name that has to be downloaded first."""
    if name.startswith("builtin:"):
        return _builtin_folder(name, kind)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(name, folder, kind)
    if folder.exists():
        raise InputError(f"{name}: a {TITLES[kind]} is a folder; this is a file")
    if not is_hub_name(name):
        raise InputError(f"{name}: no such folder; {_give(kind)}")
    cached = _cached_folder(name, kind)
    # Somebody else may have fetched its small files only; the hub can complete them.
    if cached is None or not any(cached.rglob("*.safetensors")):
        return None
    return _checked(name, cached, kind)


def _checked(name: str, folder: Path, kind: JudgeKind) -> Path:
    fault = folder_fault(folder, kind)
    if fault:
        raise InputError(f"{name}: {fault}")
    return folder


def _builtin_folder(name: str, kind: JudgeKind) -> Path:
    if kind != "encoder":
        raise InputError(f"{name}: no {TITLES[kind]} is embedded; give a folder or a hub name")
    if name != BUILTIN_ENCODER:
        hint = did_you_mean(name, [BUILTIN_ENCODER])
        raise InputError(f"{name}: unknown embedded sentence encoder. {hint}")
    return builtin_encoder_folder()


def _cached_folder(name: str, kind: JudgeKind) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(name, _marker(kind))
    except ValueError as error:  # not even a possible name
        raise InputError(f"{name}: no such folder; {_give(kind)}") from error
    return Path(file).parent if isinstance(file, str) else None


def _marker(kind: JudgeKind) -> str:
    """The file without which a folder is no such model."""
    return "modules.json" if kind == "encoder" else "config.json"


def _encoder_fault(folder: Path) -> str | None:
    if not (folder / "modules.json").is_file():
        return "no modules.json, so this is no sentence-transformers model"
    foreign = [
        kind for kind, _ in _modules(folder) if not kind.startswith("sentence_transformers.")
    ]
    if foreign:
        return (
            f"its modules.json names {foreign[0]}: Python code from outside sentence-transformers "
            "is never run for a judge. Name another sentence encoder"
        )
    return _weight_fault(_places(folder, "encoder"))


def _classifier_fault(folder: Path, kind: JudgeKind) -> str | None:
    if not (folder / "config.json").is_file():
        return "no config.json, so this is no classifier in transformers format"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    labels = config.get("id2label") if isinstance(config, Mapping) else None
    # transformers gives the names LABEL_0 and LABEL_1 to classes without any.
    names = list(labels.values()) if isinstance(labels, Mapping) else ["LABEL_0", "LABEL_1"]
    return label_fault([str(name) for name in names], kind) or _weight_fault(_places(folder, kind))


def _weight_fault(places: Sequence[Path]) -> str | None:
    """Why weights are missing; every place with a pickle must have safetensors as well."""
    found = [{file.suffix for file in place.iterdir()} for place in places]
    pickled = any(kinds & set(_PICKLES) and ".safetensors" not in kinds for kinds in found)
    if pickled:
        return (
            "weights only as a pickle, which can run any code when opened, so it is not read. "
            "Load the model where you trust it, and save it with save_pretrained(FOLDER)"
        )
    if not any(".safetensors" in kinds for kinds in found):
        return "no weights: expected model.safetensors"
    return None


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Types and folders of a sentence-transformers model's modules, in order."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    if not isinstance(modules, list) or not all(isinstance(one, Mapping) for one in modules):
        raise ValueError("modules.json holds no list of modules")
    return [(str(one.get("type")), str(one.get("path", ""))) for one in modules]


def _places(folder: Path, kind: JudgeKind) -> list[Path]:
    """The folders that weights and configs may lie in."""
    if kind != "encoder":
        return [folder]
    places = [folder / path for path in dict.fromkeys(path for _, path in _modules(folder))]
    return [place for place in places if place.is_dir()]


def _require_extra(kind: JudgeKind) -> None:
    if kind == "encoder" and importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtraError("sentence-transformers", _EXTRA, "A sentence encoder")


def _require_on_hub(name: str, kind: JudgeKind) -> None:
    """Make sure that the hub gives the model in a form we read."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"{name}: no such folder, not complete in the local hub cache, and the hub is "
            "switched off (HF_HUB_OFFLINE). "
            f"Download it where there is a network, or {_give(kind)}"
        )
    info = _ask_hub(name, kind, lambda: HfApi().model_info(name, timeout=HUB_TIMEOUT), HUB_TIMEOUT)
    files = {str(file.rfilename) for file in info.siblings or ()}
    if _marker(kind) not in files:
        raise InputError(f"{name}: no {TITLES[kind]}: the hub has no {_marker(kind)} of it")
    if not any(file.endswith(".safetensors") for file in files):
        raise InputError(
            f"{name}: the hub has no safetensors of it, and no other weights are read. "
            "Load the model where you trust it, save it with save_pretrained(FOLDER), and give "
            "that folder"
        )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    with no_progress_bars():
        folder = snapshot_download(
            name,
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_UNWANTED),
            etag_timeout=HUB_TIMEOUT,
        )
    return Path(folder)


def _ask_hub(name: str, kind: JudgeKind, call: Callable[[], T], seconds: float | None) -> T:
    """The answer of the hub; every failure and every delay become an `InputError`.

    In a thread of its own, because no timeout of a hub client covers the look-up of the address.
    """
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, call()))
        except Exception as error:  # noqa: BLE001 - handed on to the thread that waits
            answers.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        good, answer = answers.get(timeout=seconds)
    except queue.Empty:
        good, answer = False, f"no answer within {seconds} seconds"
    if good:
        found: T = answer
        return found
    first = (str(answer).strip() or type(answer).__name__).splitlines()[0]
    raise InputError(
        f"{name}: no such folder, not complete in the local hub cache, and the hub did not give "
        f"it (no network, a wrong name, or no access): {first}. "
        f"Download it where there is a network, or {_give(kind)}"
    )


def _give(kind: JudgeKind) -> str:
    if kind == "encoder":
        return f"give the folder of a sentence-transformers model, or {BUILTIN_ENCODER}"
    return f"give the folder of a trained {TITLES[kind]}"
