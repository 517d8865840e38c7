"""A page on this machine that answers the microphone or a file, by gradio."""

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

TOP = 8  # bars of a task
WHOLE = 10.0  # s; a longer recording is answered in segments alone


def answer(
    predictor: Predictor, path: str | None
) -> tuple[str, list[dict[str, float]], list[list[str]]]:
    """A line about a recording, the probability of each task's likeliest answers, and a row for
    each segment: start, end, answers. Up to ``WHOLE`` seconds are answered as one, more than
    ``LONGEST`` in segments.
    """

    def told(task: str, one: Prediction) -> str:
        is_text = predictor.records[task].is_text
        return text_of(one.names) if is_text else ", ".join(one.names)

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
            bars = [{told(task, one): one.probability for one in whole[task]} for task in whole]
        for start, end, answers in predictor.segments(path) if seconds > LONGEST else ():
            best = [(told(task, one), one.probability) for task, (one, *_) in answers.items()]
            shown = [f"{text} ({100 * share:.1f} %)" for text, share in best]
            rows.append([f"{start:.2f}", f"{end:.2f}", *shown])
    except BadAudio as error:
        return one_line(f"No answer: the recording {error}."), bars, rows
    parts = ["as a whole"] * (seconds <= WHOLE) + [f"in {len(rows):,} segments"] * bool(rows)
    return f"{seconds:.1f} s, answered {' and '.join(parts)}.", bars, rows


def page(predictor: Predictor) -> gradio.Blocks:
    """The page. It asks nothing of other machines and deletes a recording after ten minutes."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    logging.getLogger().setLevel(logging.WARNING)  # fairseq lets every logger speak
    import gradio as gr

    tasks = list(predictor.records)

    def answered(path: str | None) -> list[Any]:
        line, bars, rows = answer(predictor, path)
        shown = [gr.Label(bar or None, visible=bool(bar)) for bar in bars]
        return [line, *shown, gr.Dataframe(rows, visible=bool(rows))]

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
