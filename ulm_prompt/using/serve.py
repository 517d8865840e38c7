"""A gradio page on this machine that answers recordings from the microphone or a file."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import one_line
from preprocess.speech2unit.audio import BadAudio, length_and_rate
from ulm_prompt.prompt_data.label_names import text_of
from ulm_prompt.using.speech import LONGEST

if TYPE_CHECKING:
    import gradio

    from ulm_prompt.using.predictor import Prediction, Predictor

TOP = 8  # bars per task
WHOLE = 10.0  # s; a longer recording is only answered in segments


def answer(
    predictor: Predictor, path: str | None
) -> tuple[str, list[dict[str, float]], list[list[str]]]:
    """Return a line about a recording, the probability of each task's likeliest answers, and a row
    per segment: start, end, answers. A recording up to ``WHOLE`` seconds is answered as a whole, a
    recording over ``LONGEST`` seconds in segments.
    """

    def named(task: str, prediction: Prediction) -> str:
        is_text = predictor.records[task].is_text
        return text_of(prediction.names) if is_text else ", ".join(prediction.names)

    bars: list[dict[str, float]] = [{} for _ in predictor.records]
    rows: list[list[str]] = []
    if path is None:
        return "", bars, rows
    try:
        frames, rate = length_and_rate(Path(path))
        if (seconds := frames / rate) <= WHOLE:
            (whole,) = predictor([path], TOP)
            if isinstance(whole, BadAudio):
                raise whole
            bars = [{named(task, best): best.probability for best in whole[task]} for task in whole]
        for start, end, answers in predictor.segments(path) if seconds > LONGEST else ():
            best = [(named(task, top), top.probability) for task, (top, *_) in answers.items()]
            cells = [f"{text} ({100 * share:.1f} %)" for text, share in best]
            rows.append([f"{start:.2f}", f"{end:.2f}", *cells])
    except BadAudio as error:
        return one_line(f"No answer: the recording {error}."), bars, rows
    parts = ["as a whole"] * (seconds <= WHOLE) + [f"in {len(rows):,} segments"] * bool(rows)
    return f"{seconds:.1f} s, answered {' and '.join(parts)}.", bars, rows


def page(predictor: Predictor) -> gradio.Blocks:
    """Build the page. It contacts no other machine and deletes a recording after ten minutes."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    logging.getLogger().setLevel(logging.WARNING)  # fairseq lets all loggers print
    import gradio as gr

    tasks = list(predictor.records)

    def answered(path: str | None) -> list[Any]:
        line, bars, rows = answer(predictor, path)
        labels = [gr.Label(bar or None, visible=bool(bar)) for bar in bars]
        return [line, *labels, gr.Dataframe(rows, visible=bool(rows))]

    with gr.Blocks(
        title="SpeechPrompt", analytics_enabled=False, delete_cache=(600, 600)
    ) as blocks:
        gr.Markdown(f"# SpeechPrompt\n{', '.join(tasks)}: record, or drop a file.")
        sources = ["microphone", "upload"]
        audio = gr.Audio(sources=sources, type="filepath", label="recording", buttons=[])
        line = gr.Markdown(elem_id="line")
        with gr.Row():
            bars = [gr.Label(label=task, num_top_classes=TOP, visible=False) for task in tasks]
        headers = ["start, s", "end, s", *tasks]
        rows = gr.Dataframe(headers=headers, label="segments", visible=False, buttons=[])
        audio.change(answered, audio, [line, *bars, rows], api_name=False)
    return blocks


def serve(predictor: Predictor) -> None:
    """Show the page, on this machine only, until Ctrl-C. Then remove the recordings."""
    with tempfile.TemporaryDirectory() as folder:
        # gradio checks that its own page is up; through a proxy the check would fail
        os.environ.update(GRADIO_TEMP_DIR=folder, no_proxy="127.0.0.1")
        blocks = page(predictor)
        _, address, _ = blocks.launch(
            server_name="127.0.0.1", share=False, quiet=True, prevent_thread_lock=True,
            footer_links=[], ssr_mode=False, enable_monitoring=False,
        )  # fmt: skip
        print(f"open {address} in a browser on this machine; Ctrl-C stops it", flush=True)
        blocks.block_thread()
