"""The dataset's split rule, and manifests on disk."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.rows import read_rows
from pipeline.workspace import REPOSITORY
from preprocess.manifest import Entry, distinct, read_manifest, write_manifest
from preprocess.speech_commands.corpus import which_split

PUBLISHED = REPOSITORY.parent / "shared" / "data" / "units" / "hubert100" / "speech_commands"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("a6d586b7_nohash_4.wav", "valid"),  # both in the dataset's validation list
        ("dbb40d24_nohash_3.wav", "valid"),
        ("37fc5d97_nohash_1.wav", None),  # both in the test set
        ("27c30960_nohash_0.wav", None),
        ("024d32b9_nohash_1.wav", "train"),
        ("2357fa8a_nohash_1.wav", "train"),
    ],
)
def test_known_names(name, split):
    assert which_split(name) == split


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published units in ../shared/data")
def test_published_validation_rows_are_validation_files():
    files = {row.file for row in read_rows(PUBLISHED / "valid")}
    spoken = [file for file in files if not file.startswith("temp/")]
    assert len(files) == 3370 and len(spoken) > 2500
    assert {which_split(Path(file).name) for file in spoken} == {"valid"}


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), min_size=1)
entries = st.builds(
    Entry, names, st.integers(1, 10**9), st.integers(0, 10**9), names, st.just("0 7 21")
)


@given(st.lists(entries, min_size=1))
def test_manifest_round_trip(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("manifest") / "train.tsv"
    assert write_manifest(path, Path("/corpus"), some) == len(some)
    assert read_manifest(path) == (Path("/corpus"), some)


def test_distinct_keeps_the_first_of_each_file():
    first, second = Entry("a", 5, 0, "a", "1"), Entry("b", 5, 0, "b", "1")
    assert distinct([first, second, first, first]) == [first, second]
    with pytest.raises(UserError, match="names two pieces of audio"):
        distinct([first, Entry("a", 5, 3, "a", "1")])


@pytest.mark.parametrize("text", ["/corpus\n", "/corpus\na.wav\t5\n", "/corpus\na\tx\t0\ta\t1\n"])
def test_broken_manifests(tmp_path, text):
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises(UserError, match=r"train\.tsv.*generate_manifest again"):
        read_manifest(tmp_path / "train.tsv")


def test_names_that_a_manifest_cannot_hold(tmp_path):
    with pytest.raises(UserError, match="a tab or a line break"):
        write_manifest(tmp_path / "m.tsv", Path("/c"), [Entry("a\tb.wav", 1, 0, "a", "0")])
    assert list(tmp_path.iterdir()) == []
