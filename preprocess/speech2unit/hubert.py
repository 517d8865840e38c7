"""HuBERT and wav2vec 2.0 features as GSLM's readers give them, for batches.

The waveform is layer-normed over the whole file where the checkpoint or the config says so. Then
it is cut into pieces of 100 s that do not see each other. ``wav2vec_encoder`` encodes pieces of any
lengths together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from pipeline.errors import UserError
from preprocess.speech2unit.fairseq_checkpoint import load_fairseq_checkpoint
from preprocess.speech2unit.features import SAMPLE_RATE, Source, grouped, tf32
from preprocess.speech2unit.hf_checkpoint import is_hugging_face, load_hf_checkpoint
from preprocess.speech2unit.wav2vec_encoder import Wav2VecEncoder

_PIECE = 1_600_000  # samples


class Hubert:
    """The output of layer ``source.layer``, counted from 1, of a HuBERT checkpoint: fairseq's, or
    Hugging Face's (``hf_checkpoint``).

    50 frames/s. What is left after the last piece and too short for a frame has none (the published
    reader fails there). ``source.all_layers`` gives what SUPERB's toolkit s3prl calls the hidden
    states: the input of each layer and the encoder's output, 13 for the Base model.
    """

    models = ("hubert",)
    first_layer = 1  # the number of the first layer's output
    dtypes = ("float32", "bfloat16", "tf32")

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for a checkpoint that cannot be used, and for a layer beyond it."""
        path = source.ckpt_path
        is_theirs = path is not None and is_hugging_face(path)
        load = load_hf_checkpoint if is_theirs else load_fairseq_checkpoint
        settings, weights = load(path, self.models, source.device)
        if source.dtype == "bfloat16":
            weights.dtype = torch.bfloat16
        self._tf32 = source.dtype == "tf32"
        layers = settings.encoder_layers
        if not source.all_layers:
            last = layers - 1 + self.first_layer
            if source.layer is None or not self.first_layer <= source.layer <= last:
                raise UserError(
                    f"fairseqrc.layer={source.layer}: {source.ckpt_path} has the layers "
                    f"{self.first_layer} to {last}"
                )
            layers = source.layer + 1 - self.first_layer
        self._encoder = Wav2VecEncoder(settings, weights, layers, source.all_layers)
        self._device = source.device
        self._normalize = settings.normalize if source.normalize is None else source.normalize
        if is_theirs:
            self.note = f"; of {path}, waveforms {'' if self._normalize else 'not '}normalised"
        if not self._normalize:  # over the whole waveform
            self.pieces = _PIECE, 0
        self.dim = self._encoder.dim
        conv = self._encoder.conv
        self.min_samples = conv.samples(1)
        self.frame_rate = SAMPLE_RATE / (conv.samples(2) - conv.samples(1))

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map B waveforms (samples_i,) to B features (T_i, D), or (T_i, L, D)."""
        features: list[list[torch.Tensor]] = [[] for _ in waveforms]
        # together no longer than the longest piece: an hour takes no more memory than 100 s
        for group in grouped(self._pieces(waveforms), lambda piece: len(piece[1]), _PIECE):
            with tf32(self._tf32):
                encoded = self._encoder([piece for _, piece in group])
            for (index, _), frames in zip(group, encoded, strict=True):
                features[index].append(frames)
        return [torch.cat(parts) for parts in features]

    def _pieces(self, waveforms: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """The waveforms' pieces, each with its waveform's index."""
        for index, waveform in enumerate(waveforms):
            waveform = waveform.to(self._device)
            if self._normalize:
                waveform = F.layer_norm(waveform, waveform.shape)
            for piece in waveform.split(_PIECE):
                if len(piece) >= self.min_samples:
                    yield index, piece


class Wav2Vec2(Hubert):
    """The output of layer ``source.layer``, counted from 0, of a wav2vec 2.0 checkpoint.

    As published: GSLM's layer 14 is ``layer_results[14]``, the fifteenth layer's output. GSLM's
    reader feeds the samples as they are, whatever the checkpoint's ``normalize`` says: its released
    k-means belongs with ``normalize: false``. Files over 100 s are cut as HuBERT's are, where the
    published reader would need memory for their square.
    """

    models = ("wav2vec2",)
    first_layer = 0
