"""A run that writes proxies itself may lack them, but not what they are written from."""

import pytest

import expunge
from expunge.run.check import check
from expunge.run.recipes import find_recipe


def config(tmp_path, *overrides):
    return expunge.load_config(
        find_recipe("demo"), f"output_dir={tmp_path}/run", "method=EGUP(NPO+GD)", *overrides
    )


def places(config, verb):
    return [problem.where for problem in check(config, verb=verb).problems]


def test_missing_proxies_stop_unlearn_but_no_run_that_writes_them(tmp_path):
    found = config(tmp_path)
    assert places(found, "unlearn") == ["data.proxies"]
    assert places(found, "run") == []


@pytest.mark.parametrize("verb", ["unlearn", "run"])
def test_proxies_that_are_there_are_looked_at_by_both(tmp_path, verb):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "?"}\n')
    assert places(config(tmp_path, f"data.proxies={file}"), verb) == ["data.proxies"]


def test_a_run_that_writes_them_needs_examples(tmp_path):
    found = config(tmp_path, f"proxies.exemplar_file={tmp_path}/none.jsonl")
    assert places(found, "run") == ["proxies.exemplar_file"]


def test_missing_alternates_are_written_as_well(tmp_path):
    found = config(tmp_path, "method=AltPO")
    assert places(found, "unlearn") == ["data.alternates"]
    assert places(found, "run") == []
