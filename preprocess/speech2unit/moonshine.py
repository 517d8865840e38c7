"""Features of Moonshine tiny, a supervised English speech recogniser (arXiv 2410.15608): the output
of its encoder, run by ONNX Runtime.
"""

from __future__ import annotations

import numpy as np
import onnxruntime

from pipeline.errors import UserError, is_out_of_memory
from pipeline.files import kind_of_file
from preprocess.speech2unit.features import SAMPLE_RATE, FeatureReader, Source

_HOP, _FIELD = 384, 895  # samples per frame, and samples that a frame sees (three convolutions)
_SILENCE = 21  # frames of zeros before and after, 0.5 s: see docs/speech_to_units.md
_LONGEST = 30 * SAMPLE_RATE  # the model was trained on at most half a minute
_CONTEXT = 104  # frames of each neighbouring piece that the encoder also gets, 2.5 s


class Moonshine(FeatureReader):
    """One frame per 24 ms: a waveform of T samples has 1 + (T - 895) // 384 frames.

    The encoder also gets half a second of zeros before and after. A waveform over 30 s is cut into
    equal pieces of at most 25 s, and each is encoded with 2.5 s of its neighbours. The frames of
    zeros and neighbours are dropped. Waveforms are encoded one by one: the products are in 8 bits,
    with one scale for the whole input, so a batch or an attention mask would change every feature.
    """

    frame_rate = SAMPLE_RATE / _HOP
    min_samples = _FIELD
    takes = ("ckpt_path",)

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` if the encoder is missing or another model, or if a layer is set."""
        super().__init__(source)
        path = source.ckpt_path
        if not path.is_file():
            problem = f"this is {kind_of_file(path)}" if path.is_dir() else "not found"
            raise UserError(f"{path}: {problem}; run pretrained_models/download.py moonshine100")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # no idle threads: the caller runs one waveform per thread
        options.log_severity_level = 3  # errors
        cpu = ["CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=cpu)
        except Exception as error:  # onnxruntime has no common class for its errors
            if is_out_of_memory(error):
                raise
            kind = kind_of_file(path) or ""
            reason = f"this is {kind}" if kind and "ONNX" not in kind else str(error)
            reason = reason.split("\n")[0][:200]
            raise UserError(f"{path}: not an ONNX Runtime model ({reason}); get it again") from None
        names = {value.name for value in self._session.get_inputs()}
        output = self._session.get_outputs()[0]
        if names != {"input_values", "attention_mask"} or not isinstance(output.shape[-1], int):
            problem = f"expected Moonshine's encoder, found the inputs {', '.join(sorted(names))}"
            raise UserError(f"{path}: {problem}; get the file again")
        self.dim = output.shape[-1]

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Map (T,) to (frames, D), piece by piece."""
        if len(samples) <= _LONGEST:
            return self._encode(samples)
        count = _frames(len(samples))
        longest = _LONGEST // _HOP - 2 * _CONTEXT - 2  # with its context a piece is under 30 s
        pieces = -(-count // longest)
        cuts = [count * piece // pieces for piece in range(pieces + 1)]
        features = []
        for start, end in zip(cuts, cuts[1:]):
            first, last = max(0, start - _CONTEXT), min(count, end + _CONTEXT)  # with the context
            frames = self._encode(samples[first * _HOP : (last - 1) * _HOP + _FIELD])
            features.append(frames[start - first : end - first])
        return np.concatenate(features)

    def _encode(self, samples: np.ndarray) -> np.ndarray:
        """Map (T,) to (frames, D), with silence added before and after."""
        padded = np.pad(samples, _SILENCE * _HOP)[None]  # (1, N)
        inputs = {"input_values": padded, "attention_mask": np.ones(padded.shape, np.int64)}
        (frames,) = self._session.run(None, inputs)  # (1, frames + 2 * _SILENCE, D)
        return frames[0, _SILENCE : _SILENCE + _frames(len(samples))]


def _frames(samples: int) -> int:
    return 1 + (samples - _FIELD) // _HOP
