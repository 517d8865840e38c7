"""predict.py --serve: the page's answers to a recording, and the page in a browser."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from tests.browser import Browser, chromium
from tests.conftest import REPOSITORY
from tests.preprocess import corpora
from tests.ulm_prompt import spoken
from tests.ulm_prompt.in_process import call
from ulm_prompt.using.predictor import Predictor
from ulm_prompt.using.serve import TOP, answer

NOWHERE = "http://127.0.0.1:9"  # as a proxy: requests to other machines fail


def words(count: int) -> np.ndarray:
    """Return (T,) melodies with a second of silence after each melody."""
    pause = np.zeros(16000, np.float32)
    return np.concatenate([part for n in range(count) for part in (spoken.melody(n), pause)])


def test_short_and_long_recordings(predictor: Predictor, tmp_path: Path) -> None:
    """The page shows the answers of the Python API: bars up to 10 s, segments from 2 s."""
    for count, has_bars, has_rows in ((1, True, False), (3, True, True), (8, False, True)):
        path = tmp_path / f"{count}.wav"
        sound = words(count) if count > 1 else spoken.melody(0)
        corpora.write(path, sound)
        line, bars, rows = answer(predictor, str(path))
        assert line.startswith(f"{len(sound) / 16000:.1f} s, answered ")
        assert ("as a whole" in line, "segments" in line) == (has_bars, has_rows)
        (wanted,) = predictor([path], TOP)
        for bar, ranked in zip(bars, wanted.values()):
            shares = {", ".join(best.names): best.probability for best in ranked}
            assert bar == (pytest.approx(shares) if has_bars else {})
        segments = list(predictor.segments(path)) if has_rows else []
        assert [row[:2] for row in rows] == [[f"{s.start:.2f}", f"{s.end:.2f}"] for s in segments]
        for row, segment in zip(rows, segments):
            best = segment.answers["IC"][0]
            assert row[3] == f"{', '.join(best.names)} ({100 * best.probability:.1f} %)"


def test_no_recording_and_a_bad_one(predictor: Predictor, tmp_path: Path) -> None:
    assert answer(predictor, None) == ("", [{}, {}], [])
    path = tmp_path / "text.wav"
    path.write_text("no audio")
    line, bars, rows = answer(predictor, str(path))
    assert line.startswith("No answer: the recording ") and (bars, rows) == ([{}, {}], [])
    corpora.write(path, np.zeros(16000 * 12, np.float32))
    line, *_ = answer(predictor, str(path))
    assert line == "No answer: the recording contains no sound that is louder than the noise floor."


def test_mistakes_are_reported_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags in (("a.wav",), ("--segments",), ("--top", 2), ("--format", "csv")):
        with pytest.raises(UserError, match="--serve: takes no audio"):
            call("predict", tmp_path, "--serve", *flags)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs gradio, which is not installed; pip install gradio"):
        call("predict", tmp_path, "--serve")


def drop(browser: Browser, path: Path) -> None:
    """Upload the file like a user who chooses it."""
    browser.js("document.querySelector('[aria-label=\"Upload file\"]').click()")
    browser.wait("!!document.querySelector('input[type=file]')")
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
    browser.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)


def test_the_page_in_a_browser(spoken_workspace: Workspace, tmp_path: Path) -> None:
    """The page answers a microphone, then a longer file. It contacts no machine, keeps no file."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed (pip install gradio)")
    corpora.write(tmp_path / "microphone.wav", spoken.melody(1))
    corpora.write(tmp_path / "long.wav", words(8))
    (kept := tmp_path / "temporary").mkdir()
    microphone = (
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'microphone.wav'}",
    )  # fmt: skip
    script = REPOSITORY / "ulm_prompt" / "predict.py"
    flags = ("--serve", "--workspace", spoken_workspace.root, "--prompt", "KS", "--prompt", "IC")
    line = "document.querySelector('#line').innerText.match(/.*answered.*/)?.[0]"
    with chromium(tmp_path / "profile", *microphone) as browser:
        server = subprocess.Popen(
            [sys.executable, script, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "TMPDIR": str(kept), "http_proxy": NOWHERE},
        )  # fmt: skip
        try:
            printed = server.stdout.readline()
            address = printed.split()[1]
            assert printed == f"open {address} in a browser on this machine; Ctrl-C stops it\n"
            browser.open(address)
            browser.wait("!!document.querySelector('.record-button')?.checkVisibility()")
            browser.js("document.querySelector('.record-button').click()")
            browser.wait("!!document.querySelector('.stop-button')?.checkVisibility()")
            time.sleep(1)
            browser.js("document.querySelector('.stop-button').click()")
            assert "answered as a whole" in browser.wait(line)
            text = browser.wait("document.body.innerText.includes('%') && document.body.innerText")
            assert "KS" in text and "IC" in text and "start, s" not in text
            browser.js("document.querySelector('[aria-label=Clear]').click()")
            browser.wait(f"!({line})")
            drop(browser, tmp_path / "long.wav")
            assert "segments" in browser.wait(line)
            browser.wait("document.body.innerText.includes('start, s')")
            assert browser.mistakes() == [] and browser.hosts() == {address.rstrip("/")}
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
        finally:
            server.kill()
            errors = server.communicate()[1]
    assert "Traceback" not in errors and list(kept.iterdir()) == []
