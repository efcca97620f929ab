"""The tables of perf/run.py."""

from __future__ import annotations

from collections.abc import Sequence

from drawing import Result, table


def step_tables(result: Result) -> list[str]:
    """Speed, share of the limit, memory and agreement of a result of run.py."""
    lines = [line for line in result["works"] if "refused" not in line]
    refused = [line for line in result["works"] if "refused" in line]
    timed = [line for line in lines if "ratio" in line]
    parts = [_settings(result)]
    if timed:
        parts += ["**Speed**: times faster than the comparator; higher is better", _speed(timed)]
        parts += ["**Share of the machine's limit**; higher is better", _shares(timed)]
    if lines:
        parts += ["**Peak memory** per process; lower is better", _memory(lines)]
        parts += ["**Same numbers** in float32, relative; lower is better", _agreement(lines)]
    parts += [
        f"No ratio for {line['title']}, {line['precision']}: {line['refused']}" for line in refused
    ]
    return parts


def _settings(result: Result) -> str:
    settings = result["settings"]
    attention = settings["attention"]
    text = (
        f"Comparator: {settings['naive']}, attention `{attention['naive']}`. Expunge: attention "
        f"`{attention['ours']}`"
    )
    options = ", ".join(f"`{name}={value}`" for name, value in settings["options"].items())
    return f"{text}, {options}." if options else f"{text}, its defaults otherwise."


def _speed(lines: Sequence[Result]) -> str:
    headers = ["work", "precision", "rows per stream", "pairs", "naive, s", "ours, s"]
    headers += [
        "ratio: min / median / max",
        "of the sums",
        "floor",
        "before the first step: naive / ours, s",
    ]
    rows = []
    for line in lines:
        ratio, seconds = line["ratio"], line["seconds"]
        prepare = line["prepare_seconds"]
        rows.append(
            [
                *(line["title"], line["precision"], f"{line['rows']}", f"{ratio['n']}"),
                f"{seconds['naive']['median']:.2f}",
                f"{seconds['ours']['median']:.2f}",
                f"{ratio['min']:.2f} / **{ratio['median']:.2f}** / {ratio['max']:.2f}",
                f"{line['ratio_of_totals']:.2f}",
                _floor(line["target"], ratio["median"], "{:g}"),
                f"{prepare['naive']:.1f} / {prepare['ours']:.1f}",
            ]
        )
    return table(headers, rows)


def _shares(lines: Sequence[Result]) -> str:
    headers = ["work", "precision", "tokens real / padded / answers", "useful GFLOP"]
    headers += ["ceiling, GFLOP/s", "at the model's shapes", "naive", "ours: min / median / max"]
    headers += ["ours, of the best ceiling", "floor"]
    rows = []
    for line in lines:
        tokens, ceiling, share = line["tokens"], line["ceiling_gflops"], line["share"]
        ours = share["ours"]
        rows.append(
            [
                *(line["title"], line["precision"]),
                f"{tokens['real']:.0f} / {tokens['padded']:.0f} / {tokens['answers']:.0f}",
                f"{line['useful_gflop']:.0f}",
                f"{ceiling['square']['median']:.0f}",
                f"{ceiling['model']['median']:.0f}",
                f"{share['naive']['median']:.0%}",
                f"{ours['min']:.0%} / **{ours['median']:.0%}** / {ours['max']:.0%}",
                f"{line['share_of_best']['ours']:.0%}",
                _floor(line["share_target"], ours["median"], "{:.0%}"),
            ]
        )
    return table(headers, rows)


def _memory(lines: Sequence[Result]) -> str:
    headers = ["work", "precision", "rows per stream", "naive, GiB", "ours, GiB"]
    headers += ["weights, gradients, moments: naive / ours, GiB", "above them: naive / ours, GiB"]
    headers += ["ours of naive's", "without libraries", "limit"]
    rows = []
    for line in lines:
        used = line["memory"]
        naive, ours = used["naive"], used["ours"]
        limit = line.get("memory_target")
        met = "" if limit is None else f"{limit:.0%}, {_met(used['share_above'] <= limit)}"
        rows.append(
            [
                *(line["title"], line["precision"], f"{line['rows']}"),
                *(f"{naive['peak_gib']:.2f}", f"{ours['peak_gib']:.2f}"),
                f"{naive['held_gib']:.2f} / {ours['held_gib']:.2f}",
                f"{naive['above_gib']:.2f} / {ours['above_gib']:.2f}",
                f"**{used['share_above']:.0%}**",
                f"{used['share_above_without_libraries']:.0%}",
                met,
            ]
        )
    return table(headers, rows)


def _agreement(lines: Sequence[Result]) -> str:
    found = {line["trajectory"]["loss"]: line["trajectory"] for line in lines}
    rows = [
        [loss, f"{one['steps']}", f"{one['difference']:.1e}"] for loss, one in sorted(found.items())
    ]
    return table(["loss", "steps", "largest difference of a term"], rows)


def _floor(target: float | None, value: float, form: str) -> str:
    return "" if target is None else f"{form.format(target)}, {_met(value >= target)}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"
