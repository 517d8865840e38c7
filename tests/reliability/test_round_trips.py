"""What our writers write is read again as it was, and names that no file can hold are refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError, run
from pipeline.rows import Row, read_rows, write_rows
from preprocess.actions.manifest import Entry, read_manifest, write_manifest
from tests.preprocess import corpora
from tests.preprocess.tasks import preprocessor
from tests.reliability.hostile import few, refused
from ulm_prompt.prompt_data.ulm_text import write_dict
from ulm_prompt.prompt_lm.lm import load_dictionary
from ulm_prompt.scoring.sample_file import WITHIN, read_samples, write_samples

# every name of a file but those with line breaks: tabs, bars, quotes, controls, any alphabet
names = st.text(
    st.characters(exclude_characters="\r\n", exclude_categories=("Cs",))
    | st.sampled_from("\t|\"' \\\u2028\u0301"),
    max_size=12,
).filter(lambda name: not name.startswith("\ufeff"))
paths = st.lists(names.map(lambda name: name.replace("/", "").replace("\0", "")), min_size=1).map(
    "/".join
)
paths = paths.filter(lambda path: path.strip("/") and path[0] != "/" and ".." not in path)
numbers = st.lists(st.integers(0, 999_999_999), min_size=1, max_size=5).map(
    lambda values: " ".join(map(str, values))
)
count = st.integers(1, 10**12)


@few
@given(names, st.lists(st.builds(Entry, paths, count, count, names, numbers), min_size=1))
def test_manifests(tmp_path: Path, root: str, entries: list[Entry]) -> None:
    write_manifest(tmp_path / "m.tsv", Path("/", root), entries)
    assert read_manifest(tmp_path / "m.tsv") == (Path("/", root), entries)


@few
@given(st.lists(st.builds(Row, names, numbers, numbers), min_size=1, max_size=5))
def test_rows(tmp_path: Path, rows: list[Row]) -> None:
    assert write_rows(tmp_path / "train", rows) == len(rows)
    assert list(read_rows(tmp_path / "train")) == rows


@few
@given(st.lists(st.tuples(names, numbers, numbers, numbers), min_size=1, max_size=4))
def test_samples(tmp_path: Path, rows: list[tuple[str, ...]]) -> None:
    path = tmp_path / "samples.json"
    sources = [dict(zip(("file_name", "src", "label"), row)) for row in rows]
    answers = {
        row: {
            "free": {"predict": given, "score": -0.5, "label_scores": [-0.5]},
            "within": {"predict": "7", "score": None, "label_scores": []},
        }
        for row, (*_, given) in enumerate(rows)
    }
    write_samples(path, sources, answers, scored=False)
    free = [{**source, "predict": row[3]} for source, row in zip(sources, rows)]
    assert list(read_samples(path)) == free
    assert path.read_text() == json.dumps(
        {str(row): each for row, each in enumerate(free)}, indent=4, ensure_ascii=False
    )
    within = [{**source, **answers[row]["within"]} for row, source in enumerate(sources)]
    assert list(read_samples(path.with_stem(path.stem + WITHIN))) == within


@few
@given(st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=4), min_size=1, max_size=4))
def test_dicts(tmp_path: Path, lines: list[list[int]]) -> None:
    text = tmp_path / "train.txt"
    text.write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    write_dict(tmp_path / "dict.txt", {"train": text})
    units = Counter(unit for line in lines for unit in line)
    found = load_dictionary(tmp_path)
    assert found.symbols[4:] == [str(unit) for unit in range(max(units) + 1)]
    assert found.count[4:] == [units[unit] for unit in range(max(units) + 1)]


def test_a_unit_beyond_any_kmeans(tmp_path: Path) -> None:
    """Every number up to the highest unit is a symbol: a slip must not fill the disk."""
    (tmp_path / "train.txt").write_text("1 2\n3 999999999\n")
    with pytest.raises(UserError, match="unit 999999999; expected a k-means cluster"):
        write_dict(tmp_path / "dict.txt", {"train": tmp_path / "train.txt"})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\nb", "line break"),
        ("a\rb", "line break"),
        ("\ufeffa", "byte order mark"),
        ("a\udcff", "not UTF-8"),
    ],
)
def test_names_that_no_row_can_hold(tmp_path: Path, name: str, reason: str) -> None:
    for write in (
        lambda: write_rows(tmp_path / "t", [Row(name, "1", "2")]),
        lambda: write_manifest(tmp_path / "t", Path("/"), [Entry(name, 1, 0, "b", "1")]),
    ):
        assert reason in refused(write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["test", "train"])
def test_a_name_that_is_no_utf8_is_refused_at_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    root = corpora.speech_commands(tmp_path / "corpora" / "speech_commands")
    folder = next(root.glob("*test_set*")) if place == "test" else root / "speech_commands_v0.01"
    clip = next((folder / "yes").glob("*.wav"))
    clip.rename(clip.parent / "caf\udce9.wav")
    task = preprocessor("speech_commands", tmp_path)
    with pytest.raises(SystemExit) as leaving:
        run(task.generate_manifest)
    said = capsys.readouterr().err
    assert leaving.value.code == 2 and said.count("\n") == 1
    assert "caf\\udce9.wav: a name that is not UTF-8 text; rename it" in said
    assert not (tmp_path / "preprocess").exists()
