"""The rehearsal of the published files, small: from a download to answers and units."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.rehearsal import rehearse


def test_files_with_the_released_names_go_from_download_to_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearse(tmp_path, layers=2, width=256, channels=32, clips=6)
    assert capsys.readouterr().out.count(".py") == 9
    samples = tmp_path / "samples" / "samples_d"
    assert (samples / "samples_KS_hubert100_d.json").stat().st_size
    quantized = tmp_path / "preprocess" / "table" / "data" / "base100" / "quantized" / "train"
    assert len(quantized.read_text().splitlines()) == 2
