"""Features of Moonshine tiny, a supervised English speech recogniser (arXiv 2410.15608): the output
of its encoder, run by ONNX Runtime.
"""

from __future__ import annotations

import numpy as np
import onnxruntime

from pipeline.errors import UserError, is_out_of_memory
from pipeline.files import kind_of_file
from preprocess.speech2unit.features import SAMPLE_RATE, FeatureReader, Source

_HOP, _FIELD = 384, 895  # samples from frame to frame, and those that one frame sees (three convs)
_SILENCE = 21  # frames of zeros before and after, 0.5 s: measured in docs/speech_to_units.md
_LONGEST = 30 * SAMPLE_RATE  # the model was trained on at most half a minute
_CONTEXT = 104  # frames that a piece hears of each neighbour, 2.5 s


class Moonshine(FeatureReader):
    """A frame every 24 ms; a waveform of T samples has 1 + (T - 895) // 384 frames.

    The encoder hears half a second of zeros before and after. A waveform over 30 s is read in equal
    pieces of at most 25 s, which also hear 2.5 s of their neighbours. Those frames are dropped.
    Waveforms are encoded one by one: the products are in 8 bits, and one scale serves the whole
    input, so that a batch, or an attention mask, would change every feature.
    """

    frame_rate = SAMPLE_RATE / _HOP
    min_samples = _FIELD
    takes = ("ckpt_path",)

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for a missing or foreign encoder, and for a layer."""
        super().__init__(source)
        path = source.ckpt_path
        if not path.is_file():
            what = f"this is {kind_of_file(path)}" if path.is_dir() else "not found"
            raise UserError(f"{path}: {what}; get it by pretrained_models/download.py moonshine100")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # no idle threads; the caller runs a waveform a thread
        options.log_severity_level = 3  # errors
        cpu = ["CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=cpu)
        except Exception as error:  # onnxruntime has no class of its own for this
            if is_out_of_memory(error):
                raise
            kind = kind_of_file(path) or ""
            reason = f"this is {kind}" if kind and "ONNX" not in kind else str(error)
            reason = reason.split("\n")[0][:200]
            raise UserError(f"{path}: not an ONNX Runtime model ({reason}); get it again") from None
        names = {value.name for value in self._session.get_inputs()}
        output = self._session.get_outputs()[0]
        if names != {"input_values", "attention_mask"} or not isinstance(output.shape[-1], int):
            found = f"a model of {', '.join(sorted(names))}"
            raise UserError(f"{path}: expected Moonshine's encoder, found {found}; get it again")
        self.dim = output.shape[-1]

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Map (T,) to (frames, D), piece by piece."""
        if len(samples) <= _LONGEST:
            return self._encode(samples)
        count = _frames(len(samples))
        longest = _LONGEST // _HOP - 2 * _CONTEXT - 2  # what a piece hears stays under 30 s
        pieces = -(-count // longest)
        cuts = [count * piece // pieces for piece in range(pieces + 1)]
        features = []
        for start, end in zip(cuts, cuts[1:]):
            first, last = max(0, start - _CONTEXT), min(count, end + _CONTEXT)  # heard
            frames = self._encode(samples[first * _HOP : (last - 1) * _HOP + _FIELD])
            features.append(frames[start - first : end - first])
        return np.concatenate(features)

    def _encode(self, samples: np.ndarray) -> np.ndarray:
        """Map (T,) to (frames, D) with silence around."""
        heard = np.pad(samples, _SILENCE * _HOP)[None]  # (1, N)
        inputs = {"input_values": heard, "attention_mask": np.ones(heard.shape, np.int64)}
        (frames,) = self._session.run(None, inputs)  # (1, frames + 2 * _SILENCE, D)
        return frames[0, _SILENCE : _SILENCE + _frames(len(samples))]


def _frames(samples: int) -> int:
    return 1 + (samples - _FIELD) // _HOP
