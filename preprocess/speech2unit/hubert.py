"""HuBERT and wav2vec 2.0 features, equal to those of GSLM's readers. A batch changes no feature.

The whole waveform is layer-normed if the checkpoint or the config says so. It is then cut into
pieces of 100 s, which are computed independently. Convolutions map a piece to one frame per 20 ms.
A grouped convolution over 128 frames adds positions (``wav2vec_convolutions``). Transformer layers
follow; layers above the requested one are never read. fairseq pads a batch, and HuBERT's first norm
then sees the zeros. Nothing is padded here. Pieces of equal length share the convolutions. The
Transformer's products run over all frames of the batch, and attention runs inside each piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F

from pipeline.errors import UserError
from preprocess.speech2unit.fairseq_checkpoint import Settings, Weights, load_fairseq_checkpoint
from preprocess.speech2unit.features import SAMPLE_RATE, FeatureReader, Source, grouped, tf32
from preprocess.speech2unit.hf_checkpoint import is_hugging_face, load_hf_checkpoint
from preprocess.speech2unit.wav2vec_convolutions import ConvExtractor, PositionalConv, linear, norm

_PIECE = 1_600_000  # samples, 100 s
_TOGETHER = {"cpu": 1}  # pieces convolved together; on a CPU, one piece stays in the cache


class Hubert(FeatureReader):
    """The output of layer ``source.layer`` (from 1) of a HuBERT by fairseq or Hugging Face.

    There are 50 frames per second. If the last piece is too short for a frame, it is skipped (the
    published reader fails on it). With ``source.all_layers``, the features are what s3prl calls
    hidden states: the input of each layer, and the encoder's output as the model returns it (with
    the final layer norm, if the model has one).
    """

    models = ("hubert",)
    first_layer = 1  # the number of the first layer's output
    takes = ("ckpt_path", "layer", "normalize")
    dtypes = ("float32", "bfloat16", "tf32")

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for an unusable checkpoint, or a layer that it does not have."""
        super().__init__(source)
        path = source.ckpt_path
        is_hf = is_hugging_face(path)
        load = load_hf_checkpoint if is_hf else load_fairseq_checkpoint
        settings, weights = load(path, self.models, source.device)
        if source.dtype == "bfloat16":
            weights.dtype = torch.bfloat16
        layers = settings.encoder_layers
        if not source.all_layers:
            last = layers - 1 + self.first_layer
            if source.layer is None or not self.first_layer <= source.layer <= last:
                valid = f"{path} has the layers {self.first_layer} to {last}"
                raise UserError(f"fairseqrc.layer={source.layer}: {valid}")
            layers = source.layer + 1 - self.first_layer
        self._tf32 = source.dtype == "tf32"
        self._normalize = settings.normalize if source.normalize is None else source.normalize
        if is_hf:
            self.note = f"; of {path}, waveforms {'' if self._normalize else 'not '}normalised"
        if not self._normalize:  # because normalising needs the whole waveform
            self.pieces = _PIECE, 0
        self._conv = ConvExtractor(settings, weights)
        self.dim = settings.encoder_embed_dim
        self.min_samples = self._conv.samples(1)
        self.frame_rate = SAMPLE_RATE / (self._conv.samples(2) - self._conv.samples(1))
        self._conv_norm = weights.norm("layer_norm", self._conv.dim)
        self._project = None
        if self._conv.dim != self.dim or "post_extract_proj.weight" in weights:
            self._project = weights.linear("post_extract_proj", self.dim, self._conv.dim)
        self._positions = PositionalConv(settings, weights)
        self._norm_first = settings.layer_norm_first
        self._encoder_norm = weights.norm("encoder.layer_norm", self.dim)
        self._layers = [_Layer(settings, weights, index) for index in range(layers)]

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map B waveforms (samples_i,) to B features (T_i, D), or (T_i, L, D)."""
        features: list[list[torch.Tensor]] = [[] for _ in waveforms]
        # a group is at most as long as one full piece: an hour takes no more memory than 100 s
        for group in grouped(self._pieces(waveforms), lambda piece: len(piece[1]), _PIECE):
            group.sort(key=lambda piece: len(piece[1]))  # it has at most one piece per waveform
            with tf32(self._tf32):
                encoded = self._encode([piece for _, piece in group])
            for (index, _), frames in zip(group, encoded, strict=True):
                features[index].append(frames)
        return [torch.cat(parts) for parts in features]

    def _pieces(self, waveforms: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (index of the waveform, piece) for all pieces of all waveforms."""
        for index, waveform in enumerate(waveforms):
            waveform = waveform.to(self._device)
            if self._normalize:
                waveform = F.layer_norm(waveform, waveform.shape)
            for piece in waveform.split(_PIECE):
                if len(piece) >= self.min_samples:
                    yield index, piece

    def _encode(self, pieces: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Map pieces (samples_i,), sorted by length, to (T_i, D) or (T_i, L, D)."""
        lengths = [self._conv.frames(len(piece)) for piece in pieces]
        together = _TOGETHER.get(self._device.type, len(pieces))
        convolved = [
            self._conv(batch).flatten(0, 1)  # batch: (B, samples)
            for _, group in groupby(pieces, key=len)
            for batch in torch.stack(list(group)).split(together)
        ]
        frames = norm(torch.cat(convolved), self._conv_norm)  # (N, C), N = sum of lengths
        if self._project is not None:
            frames = linear(frames, self._project).float()  # (N, D)
        for rows, shape in _runs(lengths):
            batch = frames[rows].view(*shape, -1)  # (B, T, D)
            batch += self._positions(batch)
        if not self._norm_first:
            frames = norm(frames, self._encoder_norm)
        hidden_states = [frames]
        for layer in self._layers:
            frames = layer(frames, lengths)
            if self._all_layers:
                hidden_states.append(frames)
        if self._all_layers:
            if self._norm_first:
                hidden_states[-1] = norm(frames, self._encoder_norm)
            frames = torch.stack(hidden_states, dim=1)  # (N, L, D)
        return frames.split(lengths)


class Wav2Vec2(Hubert):
    """The output of layer ``source.layer`` (from 0) of a wav2vec 2.0 checkpoint.

    As published: GSLM's layer 14 is the output of the fifteenth layer, and samples are not
    normalised, so the released k-means needs ``normalize: false``. Files are cut as for HuBERT.
    """

    models = ("wav2vec2",)
    first_layer = 0


class _Layer:
    """A Transformer layer, pre-norm or post-norm."""

    def __init__(self, settings: Settings, weights: Weights, index: int) -> None:
        dim, hidden = settings.encoder_embed_dim, settings.encoder_ffn_embed_dim
        name = f"encoder.layers.{index}"
        projections = [weights.linear(f"{name}.self_attn.{part}_proj", dim, dim) for part in "qkv"]
        self._qkv = [torch.cat(tensors) for tensors in zip(*projections)]  # (3D, D), (3D,)
        self._out = weights.linear(f"{name}.self_attn.out_proj", dim, dim)
        self._fc1 = weights.linear(f"{name}.fc1", hidden, dim)
        self._fc2 = weights.linear(f"{name}.fc2", dim, hidden)
        self._attention_norm = weights.norm(f"{name}.self_attn_layer_norm", dim)
        self._final_norm = weights.norm(f"{name}.final_layer_norm", dim)
        self._heads = settings.encoder_attention_heads
        self._norm_first = settings.layer_norm_first

    def __call__(self, frames: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Map (N, D) to (N, D). ``lengths``: the number of frames per piece, N in total."""
        if self._norm_first:
            frames = frames + self._attention(norm(frames, self._attention_norm), lengths)
            return frames + self._feed_forward(norm(frames, self._final_norm))
        frames = norm(frames + self._attention(frames, lengths), self._attention_norm)
        return norm(frames + self._feed_forward(frames), self._final_norm)

    def _attention(self, frames: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        qkv = linear(frames, self._qkv)  # (N, 3D)
        mixed = torch.empty_like(frames, dtype=qkv.dtype)
        for rows, shape in _runs(lengths):
            parts = qkv[rows].view(*shape, 3, self._heads, -1)
            query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
            heads = F.scaled_dot_product_attention(query, key, value)  # (B, H, T, D / H)
            mixed[rows] = heads.transpose(1, 2).reshape(-1, frames.shape[1])
        return linear(mixed, self._out)

    def _feed_forward(self, frames: torch.Tensor) -> torch.Tensor:
        return linear(F.gelu(linear(frames, self._fc1)), self._fc2)


def _runs(lengths: Sequence[int]) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Yield (rows, (pieces, length)) for each run of neighbouring pieces of equal length."""
    start = 0
    for length, group in groupby(lengths):
        count = len(list(group))
        yield slice(start, start + count * length), (count, length)
        start += count * length
