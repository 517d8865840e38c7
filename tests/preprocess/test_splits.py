"""The dataset's split rule, and manifests on disk."""

from pathlib import Path

import pytest

from pipeline.rows import read_rows
from pipeline.workspace import REPOSITORY
from preprocess.speech_commands.preprocessor import which_split

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
