"""wav2vec 2.0 features as GSLM's reader gives them, for batches."""

from __future__ import annotations

from preprocess.speech2unit.hubert import Hubert


class Wav2Vec2(Hubert):
    """The output of layer ``source.layer``, counted from 0, of a fairseq wav2vec 2.0 checkpoint.

    As published: GSLM's layer 14 is ``layer_results[14]``, the fifteenth layer's output. GSLM's
    reader feeds the samples as they are, whatever the checkpoint's ``normalize`` says: its released
    k-means belongs with ``normalize: false``. Files over 100 s are cut as HuBERT's are, where the
    published reader would need memory for their square.
    """

    models = ("wav2vec2",)
    first_layer = 0
