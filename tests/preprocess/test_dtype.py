"""Units by bfloat16 or TF32 products: requested by name, recorded, and never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.unit_models import find_unit_model
from preprocess.actions.audio_run import Shard
from preprocess.actions.downstreams import load_downstream
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.features import Source, check_dtype, feature_reader, tf32
from tests.preprocess import corpora, ssl_checkpoints
from tests.preprocess.ssl_checkpoints import LARGE
from tests.preprocess.tasks import preprocessor, runner_flags
from tests.reliability.hostile import refused
from ulm_prompt.using.speech import UnitFiles

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def a_processor_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.mark.parametrize(
    ("kind", "settings"), [("hubert", {}), ("hubert", LARGE), ("w2v2", {}), ("cpc", {})]
)
@pytest.mark.parametrize("all_layers", [False, True])
def test_features_in_bfloat16_are_near_and_float32(
    tmp_path: Path, kind: str, settings: dict, all_layers: bool
) -> None:
    make = {"w2v2": "wav2vec2"}.get(kind, kind)
    getattr(ssl_checkpoints, make)(tmp_path / "model.pt", **settings)
    source = Source(tmp_path / "model.pt", 2, all_layers=all_layers)
    waves = [torch.from_numpy(corpora.tone(s, 200 + 900 * s)).float() for s in (1.0, 0.3, 0.3)]
    near, exact = (
        torch.cat(feature_reader(kind, source._replace(dtype=dtype))(waves))
        for dtype in ("bfloat16", "float32")
    )
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    assert (near - exact).norm() / exact.norm() < 0.03  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("mfcc", "bfloat16", "fairseqrc.dtype=bfloat16: mfcc computes in float32"),
        ("logmel", "tf32", "fairseqrc.dtype=tf32: logmel computes in float32"),
        ("moonshine", "bfloat16", "fairseqrc.dtype=bfloat16: moonshine computes in float32"),
        ("cpc", "float16", "fairseqrc.dtype=float16: cpc computes in float32 or bfloat16 or tf32"),
    ],
)
def test_readers_refuse_unsupported_dtypes(kind: str, dtype: str, expected: str) -> None:
    assert refused(lambda: feature_reader(kind, Source(dtype=dtype))) == expected


def test_machines_without_such_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    for device in (CPU, CARD):
        check_dtype("bfloat16", device)
    check_dtype("tf32", CARD)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    for dtype, device in (("tf32", CPU), ("bfloat16", CPU), ("bfloat16", CARD)):
        message = refused(lambda dtype=dtype, device=device: check_dtype(dtype, device))
        machine = "this GPU" if device is CARD else "this processor"
        assert message == f"fairseqrc.dtype={dtype}: {machine} has no {dtype} products; use float32"


def test_tf32_changes_the_flags_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    flags = lambda: (  # noqa: E731
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    )  # fmt: skip
    before = flags()
    with tf32(True):
        assert flags() == (True, True)
        with tf32(False):
            assert flags() == (False, False)
        assert flags() == (True, True)
    assert flags() == before


HUBERT = ("fairseqrc.feature_type=hubert", "fairseqrc.layer=2", "fairseqrc.ckpt_path=model.pt")


def quantizing(workspace: Path, dtype: str = "float32") -> tuple[Preprocessor, Quantizing]:
    small = ("taskrc.unit_model=tiny", "fairseqrc.batch_seconds=0.2", f"fairseqrc.dtype={dtype}")
    task = preprocessor("fluent_commands", workspace, *HUBERT, *small)
    return task, Quantizing(task)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    ssl_checkpoints.hubert(tmp_path / "model.pt")
    corpora.fluent_commands(tmp_path / "corpora" / "fluent_commands")
    task = preprocessor("fluent_commands", tmp_path, *HUBERT, "taskrc.unit_model=tiny")
    task.generate_manifest()
    learn_kmeans([task])
    return tmp_path


def test_units_of_two_dtypes_are_never_mixed(workspace: Path, capsys) -> None:
    task, exact = quantizing(workspace)
    exact.run(Ranks(), skip_bad=False)
    plan = read_json(task.quantized / "provenance.json", "")["plan"]
    assert "dtype" not in plan  # so finished units of earlier versions stay valid
    quantizing(workspace)[1].run(Ranks(), skip_bad=False)
    assert "already exists" in capsys.readouterr().out
    _, near = quantizing(workspace, "bfloat16")
    near.run(Ranks(), skip_bad=False)
    printed = capsys.readouterr().out
    assert "already exists" not in printed and "hubert features in bfloat16 on CPU" in printed
    assert read_json(task.quantized / "provenance.json", "")["plan"] == plan | {"dtype": "bfloat16"}
    task.postprocess()  # the task's config says float32
    files = UnitFiles(find_unit_model("tiny", task.workspace), "fluent_commands")
    assert files.unit_settings().dtype == "bfloat16"
    exact.run_shard(Shard(0, 2))
    with pytest.raises(UserError, match="made with other settings"):
        near.run_shard(Shard(1, 2))


def test_the_runners_flag(workspace: Path) -> None:
    flags = ("--workspace", workspace, "--unit_model", "tiny", "--set", *HUBERT, "--dtype")
    for dtype, expected in (
        ("half", "fairseqrc.dtype=half: hubert computes in float32 or bfloat16 or tf32"),
        ("tf32", "dtype=tf32: this processor has no tf32 products"),
    ):
        task = load_downstream("fluent_commands", runner_flags(*flags, dtype))
        assert expected in refused(lambda task=task: Quantizing(task).run(Ranks(), skip_bad=False))
