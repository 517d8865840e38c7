"""A page on this machine that answers the microphone or a file, by gradio."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import one_line
from preprocess.speech2unit.audio import BadAudio, length_and_rate
from ulm_prompt.using.speech import LONGEST

if TYPE_CHECKING:
    import gradio

    from ulm_prompt.using.predictor import Prediction, Predictor

TOP = 8  # bars of a task
WHOLE = 10.0  # s; a longer recording is answered in segments alone


def answer(
    predictor: Predictor, path: str | None
) -> tuple[str, list[dict[str, float]], list[list[str]]]:
    """What the page says of a recording: a line about it, the probability of each task's likeliest
    answers, best first, and a row for each segment (start, end, the answer of each task).

    A recording of up to ``WHOLE`` seconds is answered as one, one over ``LONGEST`` in segments.
    """
    nothing: list[dict[str, float]] = [{} for _ in predictor.records]
    if path is None:
        return "", nothing, []
    bars, rows = nothing, []
    try:
        frames, rate = length_and_rate(Path(path))
        seconds = frames / rate
        if seconds <= WHOLE:
            (answers,) = predictor([path], TOP)
            if isinstance(answers, BadAudio):
                raise answers
            bars = [
                {told(predictor, task, one): one.probability for one in ranked}
                for task, ranked in answers.items()
            ]
        if seconds > LONGEST:
            rows = [
                [f"{start:.2f}", f"{end:.2f}"]
                + [
                    f"{told(predictor, task, best)} ({100 * best.probability:.1f} %)"
                    for task, (best, *_) in answers.items()
                ]
                for start, end, answers in predictor.segments(path)
            ]
    except BadAudio as error:
        return one_line(f"No answer: the recording {error}."), bars, rows
    parts = ["as a whole"] * (seconds <= WHOLE) + [f"in {len(rows):,} segments"] * bool(rows)
    return f"{seconds:.1f} s, answered {' and '.join(parts)}.", bars, rows


def told(predictor: Predictor, task: str, one: Prediction) -> str:
    """An answer as text."""
    if predictor.records[task].is_text:
        return "".join(name if len(name) == 1 else f"[{name}]" for name in one.names)
    return ", ".join(one.names)


def page(predictor: Predictor) -> gradio.Blocks:
    """The page. It asks nothing of other machines and deletes a recording after ten minutes."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    logging.getLogger().setLevel(logging.WARNING)  # fairseq lets every logger speak
    import gradio

    tasks = list(predictor.records)

    def answered(path: str | None) -> list[Any]:
        line, bars, rows = answer(predictor, path)
        shown = [gradio.Label(bar or None, visible=bool(bar)) for bar in bars]
        return [line, *shown, gradio.Dataframe(rows, visible=bool(rows))]

    with gradio.Blocks(
        title="SpeechPrompt", analytics_enabled=False, delete_cache=(600, 600)
    ) as blocks:
        gradio.Markdown(f"# SpeechPrompt\n{', '.join(tasks)}: record, or drop a file.")
        audio = gradio.Audio(
            sources=["microphone", "upload"], type="filepath", label="recording", buttons=[]
        )
        line = gradio.Markdown(elem_id="line")
        with gradio.Row():
            bars = [gradio.Label(label=task, num_top_classes=TOP, visible=False) for task in tasks]
        headers = ["start, s", "end, s", *tasks]
        segments = gradio.Dataframe(
            headers=headers, label="segments", visible=False, interactive=False, buttons=[]
        )
        audio.change(answered, audio, [line, *bars, segments], api_name=False)
    return blocks


def serve(predictor: Predictor) -> None:
    """Show the page on this machine alone until Ctrl-C. Its recordings are then removed."""
    with tempfile.TemporaryDirectory() as folder:
        # gradio asks its own page whether it is there, and a proxy would not know
        os.environ.update(GRADIO_TEMP_DIR=folder, no_proxy="127.0.0.1")
        blocks = page(predictor)
        _, address, _ = blocks.launch(
            server_name="127.0.0.1", share=False, quiet=True, prevent_thread_lock=True,
            footer_links=[], ssr_mode=False, enable_monitoring=False,
        )  # fmt: skip
        print(f"open {address} in a browser on this machine; Ctrl-C ends it", flush=True)
        blocks.block_thread()
