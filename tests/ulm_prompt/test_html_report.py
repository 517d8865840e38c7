"""cal_acc.py --html: the contents of a page, and the page in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import soundfile

from baselines.classifiers.answers import write_answers
from pipeline.errors import UserError
from pipeline.files import sha256, write_json
from pipeline.workspace import Workspace
from preprocess.actions.manifest import Entry, write_manifest
from tests.browser import chromium
from tests.preprocess import corpora
from tests.ulm_prompt.in_process import call, prepare
from ulm_prompt.prompt_data.prompt_record import PromptRecord, TrainingRun, write_record
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.prompt_data.verbal import read_prompt_text, renamed_texts
from ulm_prompt.scoring.sample_file import write_samples

EVIL = "</script><img src=x onerror=document.title='EVIL'>\"'&"
CROP, ABSENT, ODD = 3, 5, 7  # rows: a part of a file, without audio, a name that needs quoting


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Write intents with names and audio, answers of two runs and a baseline, and a log."""
    space = Workspace(tmp_path_factory.mktemp("page"))
    names = {0: EVIL, 1: "constructor"}
    labels = {str(i): {"slot": ("action", "object", "place")[i // 4], "name": names.get(i, f"n{i}")}
              for i in range(12)}  # fmt: skip
    write_json(space.rows("fluent_commands", "tiny100", "labels.json"), labels)
    prepare(space.root, "fluent_commands")
    files = [f"2/{number}.wav" for number in range(29)]
    files[ODD] = f"<b>{EVIL.replace('/', '')} ?#%.wav"
    entries = [Entry(file, 4000, 0, file, "0 4 8") for file in files]
    entries[CROP] = Entry("2/long #1.wav", 1600, 8000, files[CROP], "0 4 8")
    for number, entry in enumerate(entries):
        if number != ABSENT:
            sound = corpora.tone(2 if number == CROP else 0.25, 200 + 10 * number)
            corpora.write(space.root / "corpus" / entry.path, sound)
    manifest = space.downstream_data("fluent_commands") / "manifest"
    write_manifest(manifest / "test.tsv", space.root / "corpus", entries)
    texts = renamed_texts(space, Pair("IC", "tiny100", load_task("IC")))
    rows = list(read_prompt_text(texts["test"]))
    sources = [
        {"file_name": file, "src": f"{units} <s>", "label": label}
        for file, (units, label) in zip(files, rows)
    ]
    for date, right in (("one", 20), ("two", 12)):
        answers = {}
        for number, (_, label) in enumerate(rows):
            answer = label if number < right else rows[number - 1][1]
            scores = [-0.01 * (number + 1)] * 3
            within = {"predict": answer, "score": sum(scores), "label_scores": scores}
            free = {"predict": answer if number != 28 else "999 999 999 999"}
            answers[number] = {"free": free, "within": within}
        best = space.checkpoints("IC", "tiny100", date) / "checkpoint_best.pt"
        best.parent.mkdir(parents=True)
        best.write_bytes(date.encode())
        run = TrainingRun({}, updates=20)
        write_record(best.parent, PromptRecord("IC", "tiny100", 5, "freq", {}, "x", run=run))
        made_from = {"prompt": sha256(best)}
        write_samples(space.samples("IC", "tiny100", date, "s"), sources, answers, False, made_from)
    log = space.logs("IC", "tiny100", "one") / "train.log"
    log.parent.mkdir(parents=True)
    valid = "valid on 'valid' subset | loss 1 | accuracy {} | num_updates {}\n"
    log.write_text("".join(valid.format(*point) for point in ((25, 10), (75, 20), (70.5, 40))))
    numbers = ["0 4 8"] * 3
    write_answers(space.samples("IC", "tiny100", "ngrams_s", "s"), files[:3], numbers, numbers)
    return space


def page(workspace: Workspace, *flags: object) -> tuple[str, str, dict[str, Any]]:
    """Return what cal_acc.py prints, the page of run ``one``, and the data in the page."""
    printed = call("cal_acc", workspace.root, "--sample_date", "s", "--html", *flags)
    text = workspace.samples("IC", "tiny100", "one", "s").with_suffix(".html").read_text()
    (data,) = re.findall('<script type="application/json" id="data">(.*)</script>', text)
    return printed, text, json.loads(data)


def test_a_page_holds_scores_rows_and_audio(workspace: Workspace) -> None:
    """Names are never read as HTML. Rows 12 to 19 are right in only one of the two runs."""
    printed, text, data = page(workspace)
    path = workspace.samples("IC", "tiny100", "one", "s")
    assert f"  page: {path.with_suffix('.html')} (audio: 28 linked, 1 not found)" in printed
    assert "(audio: 3 linked)" in printed, "the baseline's page"
    files = json.loads(call("cal_acc", workspace.root, "--sample_date", "s", "--html", "--json"))
    assert files[str(path)]["page"] == str(path.with_suffix(".html"))
    rows = data["rows"]
    assert [number for number, row in enumerate(rows) if "audio" not in row] == [ABSENT]
    for number, row in enumerate(rows):
        if number != ABSENT:
            address = urlsplit(row["audio"])
            assert (path.parent / unquote(address.path)).is_file(), address
            assert address.fragment == ("t=0.500,0.600" if number == CROP else "")
    assert rows[0]["right"] and not rows[21]["right"] and rows[21]["is_mistake"]
    assert rows[21]["probability"] == pytest.approx(np.exp(-0.66))
    assert rows[21]["shares"] == pytest.approx([np.exp(-0.22)] * 3)
    assert rows[28]["answer"] == ["?"] * 4
    score = re.search(r"accuracy</th><td>([\d.]+ %) <span class=\"soft\">\((.*?)\)", text)
    assert score.groups() == ("68.97 %", "50.77 to 82.72")
    assert re.search(r"accuracy +68.97 %  \(95 %: 50.77 to 82.72\)", printed)
    # the lines of the curve: 40 updates are 640 wide, 100 % are 220 high
    assert 'points="160.0,165.0 320.0,55.0 640.0,64.9"' in text and "update 20 was kept" in text
    assert data["runs"] == ["s/IC_tiny100_ngrams_s", "s/IC_tiny100_two"]
    assert "s/IC_tiny100_ngrams_s: not compared, because the rows differ." in text
    counts = "8 answers differ. Only this run is right: 8 times. Only the other run is right: 0"
    assert f"{counts} times. McNemar" in text
    assert f"p = {2 / 2**8:.3g}." in text, "the two sides of a binomial test"
    assert any(EVIL in row["spoken"] for row in rows) and "<img" not in text
    assert text.count("</script>") == 2 and "<b>" not in text


def test_audio_is_embedded_up_to_a_limit(workspace: Workspace) -> None:
    """The most confident mistakes come first. Of a part of a file, only that part is embedded."""
    whole = page(workspace, "--embed_audio")[2]["rows"]
    (kind, coded) = whole[CROP]["audio"].split(",")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(coded)), dtype="float32")
    original, _ = soundfile.read(workspace.root / "corpus/2/long #1.wav", dtype="float32")
    assert (kind, rate, len(samples)) == ("data:audio/flac;base64", 16000, 1600)
    np.testing.assert_allclose(samples, original[8000:9600], atol=1e-4)
    limit = sum(len(whole[number]["audio"]) for number in (20, 21, 22))
    printed, _, data = page(workspace, "--embed_audio", limit / 1e6)
    assert "(audio: 3 embedded, 25 linked, 1 not found)" in printed
    embedded = [n for n, row in enumerate(data["rows"]) if row.get("audio", "").startswith("data")]
    assert embedded == [20, 21, 22]
    for flags in ("--embed_audio", "--html --embed_audio 0", "--html --embed_audio nan"):
        with pytest.raises(UserError, match="--embed_audio .*: expected up to 1000 MB, with --htm"):
            call("cal_acc", workspace.root, "--sample_date", "s", *flags.split())


def test_the_page_in_a_browser(workspace: Workspace, tmp_path: Path) -> None:
    """The page works by keys and clicks. Audio plays; a part of a file plays from its beginning."""
    page(workspace)
    path = workspace.samples("IC", "tiny100", "one", "s").with_suffix(".html")
    heading = "document.getElementById('heading').innerText"
    items = "[...document.querySelectorAll('#rows li')]"
    cells = "[...document.querySelectorAll('#matrix td button')]"
    with chromium(tmp_path) as browser:
        browser.open(path.as_uri())
        assert browser.js(heading) == "most confident mistakes within the label set: 9"
        assert "within the label set" in browser.js(f"{items}[0].innerText")
        # the keyboard alone: tab to the first button of the matrix with a number
        browser.js("document.querySelector('#slots button').focus()")
        browser.press("Enter")
        browser.press("Tab", 4)
        assert browser.js("document.activeElement.closest('#matrix') !== null")
        browser.js(f"{cells}[0].focus()")
        count = browser.js("Number(document.activeElement.innerText)")
        browser.press("Enter")
        assert browser.js("document.activeElement.id") == "heading", "the focus follows"
        assert browser.js(f"{items}.length") == count >= 1
        browser.js("document.querySelectorAll('#slots button')[1].click()")
        numbers = browser.js(f"{cells}.map(button => Number(button.innerText))")
        assert len(numbers) > 4 and sum(numbers) == 29
        assert browser.js("!document.querySelector('#matrix').outerHTML.includes('NaN')")
        browser.js("document.querySelector('[data-run]').click()")
        assert browser.js(heading) == "answers that differ from s/IC_tiny100_two: 8"
        browser.js("document.querySelector('[data-list=all]').click()")
        assert browser.js(heading) == "all utterances: 29"
        play = "(async () => {{ const a = {}[{}].querySelector('audio'); await a.play(); {} }})()"
        times = "return [a.duration, a.currentTime]"
        duration, time = browser.js(play.format(items, CROP, times))
        assert duration == 2 and 0.5 <= time < 0.7
        assert browser.js(play.format(items, ODD, "return 1")) == 1, "a name with ?, # and %"
        assert browser.js("document.title") != "EVIL" and not browser.js("!!document.images.length")
        assert browser.mistakes() == [] and browser.hosts() == {"file://"}
        browser.picture(tmp_path / "page.png")
