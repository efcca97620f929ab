"""Every stored loss case of the public codes and the worked example of EGUP, with gradients."""

import collections
import json
import lzma
from pathlib import Path

import pytest

from expunge.run.differences import SOURCES
from expunge.run.golden_inputs import golden_inputs
from expunge.run.verify import verify

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.json.xz"))
CASES = {
    "egup_uipe_worked_examples": 56,
    "losses_closer_look": 72,
    "losses_muse": 26,
    "losses_npo": 45,
    "losses_open_unlearning": 57,
    "losses_simnpo": 18,
    "losses_simnpo_muse": 6,
    "losses_tofu": 12,
    "losses_uld_and_empirical": 25,
}


def stem(file):
    return file.name.removesuffix(".json.xz")


def content(file):
    return json.loads(lzma.decompress(file.read_bytes()))


@pytest.mark.parametrize("file", FILES, ids=stem)
def test_every_case_passes(file):
    results = list(verify([file]))
    assert [result.line() for result in results if result.outcome != "passed"] == []
    assert len(results) == CASES[stem(file)]


def test_every_file_is_there_and_small():
    assert {stem(file) for file in FILES} == set(CASES)
    assert sum(file.stat().st_size for file in FILES) < 700_000


@pytest.mark.parametrize("file", FILES, ids=stem)
def test_headers_name_project_commit_and_licence(file):
    made = content(file)["header"]["produced_by"]
    if stem(file).startswith("egup"):
        assert "no public code exists" in made
        return
    assert all({"project", "commit", "licence"} <= set(source) for source in made)


def test_the_sources_of_the_page_are_those_of_the_headers():
    listed = {(source.project, source.commit, source.licence) for source in SOURCES}
    losses = [file for file in FILES if stem(file).startswith("losses")]
    headers = [source for file in losses for source in content(file)["header"]["produced_by"]]
    assert listed == {
        tuple(source[key] for key in ("project", "commit", "licence")) for source in headers
    }
    counts = collections.Counter()
    for source in SOURCES:
        assert set(source.golden) <= set(CASES)
        counts[source.golden] += source.cases
    assert counts == {files: sum(CASES[file] for file in files) for files in counts}
    assert {file for files in counts for file in files} == {stem(file) for file in losses}


def test_the_packaged_inputs_are_those_of_the_cases():
    fixtures = golden_inputs()["fixtures"]
    used = {case.get("fixture") for f in FILES for case in content(f).get("cases", [])} - {None}
    assert used == set(fixtures)
    worked = content(FOLDER / "egup_uipe_worked_examples.json.xz")
    assert golden_inputs()["worked"]["inputs"] == worked["inputs"]
    assert golden_inputs()["worked"]["narrow_band"] == worked["narrow_band"]["sim"]


def test_a_changed_number_in_a_compressed_file_is_found(tmp_path):
    changed = content(FOLDER / "losses_tofu.json.xz")
    changed["cases"][0]["loss"] *= 1 + 1e-8
    file = tmp_path / "losses_tofu.json.xz"
    file.write_bytes(lzma.compress(json.dumps(changed).encode()))
    outcomes = [result.outcome for result in verify([file])]
    assert outcomes == ["failed"] + ["passed"] * 11


def test_a_broken_archive_is_named(tmp_path):
    from expunge.core.errors import InputError

    (tmp_path / "broken.json.xz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="not a JSON file"):
        list(verify([tmp_path]))
