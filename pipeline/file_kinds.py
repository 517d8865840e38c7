"""What a file is that is not what was expected: another project's format, called by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HUGGING_FACE = ("config.json", "pytorch_model.bin", "model.safetensors")
_STARTS = {  # of the first bytes, in lower case and without space before them
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (git lfs pull gets it)",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML text, perhaps a server's error",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\x93numpy": "a numpy array",
    b"riff": "an audio file",
}
_LM_WEIGHT = re.compile(
    r"(transformer\.)?h\.0\..*|model\.(decoder\.)?layers\.0\..*|gpt_neox\.layers\.0\..*|"
    r"(transformer\.)?wte\.weight|model\.(decoder\.)?embed_tokens\.weight|lm_head\.weight"
)
_SPEECH = (
    "expected fairseq's checkpoint (pretrained_models/download.py hubert100 gets HuBERT Base's)"
)
_LM = "expected fairseq's unit LM (pretrained_models/download.py gets one, train_ulm.py trains one)"


def kind_of_file(path: Path) -> str | None:
    """What a file or folder is by its first bytes or its names, or None for no known kind."""
    if path.is_dir():
        names = [name for name in _HUGGING_FACE if (path / name).exists()]
        return "a folder of a Hugging Face model" if len(names) > 1 else "a folder"
    with open(path, "rb") as handle:
        head = handle.read(512)
    if not head:
        return "an empty file"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for begin, kind in _STARTS.items():
        if start.startswith(begin):
            return kind
    if head[4:8] == b"ORTM":
        return "an ONNX Runtime model"
    # protobuf: the version, a number, and then a field of another kind
    if len(head) > 8 and head[0] == 0x08 and head[2] in b"\x12\x1a\x22\x2a\x32\x3a\x42":
        return "an ONNX model"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 28:
        return "a safetensors file"
    return "a JSON text" if start.startswith((b"{", b"[")) and head.isascii() else None


def foreign_model(state: Mapping[Any, Any]) -> str | None:
    """What another project's checkpoint is by its keys, and what is expected instead; else None."""
    names = {name for name in state if isinstance(name, str)}
    if any(name.endswith("feature_projection.projection.weight") for name in names):
        return (
            "a Hugging Face HuBERT or wav2vec 2.0; expected its folder, with config.json, or "
            "fairseq's checkpoint"
        )
    if any(map(_LM_WEIGHT.fullmatch, names)):
        return f"a Hugging Face language model; {_LM}"
    if len(names & {"Featurizer", "Downstream", "Upstream", "Optimizer", "Args", "Config"}) > 2:
        return f"a downstream model of s3prl's; {_SPEECH}"
    if names >= {"task_cfg", "model_cfg", "model_weight"}:
        return f"a speech model in s3prl's form; {_SPEECH}"
    if isinstance(settings := state.get("cfg"), dict) and "extractor_mode" in settings:
        return f"a WavLM, whose attention is another; {_SPEECH}"
    return None
