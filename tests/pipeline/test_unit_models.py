"""The tables of unit models: the released one lists what was published, a user can add one."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.unit_models import (
    REGISTRY,
    USER_TABLE,
    Registry,
    find_unit_model,
    listed_unit_model,
    unit_models,
)
from pipeline.workspace import Workspace
from tests.conftest import REPOSITORY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pretrained_models").mkdir()
    return tmp_path / "pretrained_models"


@pytest.fixture
def workspace(folder: Path) -> Workspace:
    return Workspace(folder.parent)


SHIPPED = REPOSITORY / "pretrained_models" / "shipped"


def published_urls() -> set[str]:
    """Return the links in the READMEs of GSLM, which fairseq contains."""
    fairseq = Path(importlib.util.find_spec("fairseq").origin).parent
    gslm = fairseq / "examples" / "textless_nlp" / "gslm"
    pages = [gslm / "speech2unit" / "README.md", gslm / "ulm" / "README.md"]
    if not all(page.is_file() for page in pages):
        pytest.skip("this fairseq comes without its examples")
    links = re.findall(r"\((https://[^)]+)\)", "".join(page.read_text() for page in pages))
    return {link for link in links if link.endswith((".pt", "km.bin", "_lm.tgz"))}


def test_the_table_lists_exactly_the_published_urls(workspace: Workspace) -> None:
    models = unit_models(workspace).values()
    urls = {file.url for model in models for file in model.files.values()} - {None}
    assert urls == published_urls()


def test_the_released_table_follows_the_schema(workspace: Workspace) -> None:
    """Stages read this table without the schema."""
    table = load_config(Registry, REGISTRY)
    assert list(table.unit_models) == list(unit_models(workspace))


def test_the_files_and_layer_of_each_unit_model(workspace: Workspace, folder: Path) -> None:
    models = unit_models(workspace)
    released = {name: model for name, model in models.items() if model.lm and model.lm.url}
    assert len(released) == 12
    for name, model in released.items():
        clusters = int(re.search(r"(50|100|200)$", name)[1])
        assert model.clusters == clusters
        assert f"/km{clusters}/" in model.kmeans.url
        assert model.lm.url.endswith(f"/lm_km{clusters}/{name}_lm.tgz")
        assert model.lm_folder == workspace.lm(name)
        assert model.km_path == folder / f"{name}_km.bin"
    for name, expected in {
        "hubert100": ("hubert", 6, None, "hubert_base_ls960.pt"),
        "hubert200": ("hubert", 6, None, "hubert_base_ls960.pt"),
        "cpc50": ("cpc", 2, None, "cpc_big_ll6kh_top_ctc.pt"),
        "w2v2_50": ("w2v2", 14, False, "wav2vec_vox_new.pt"),
        "logmel100": ("logmel", None, None, ""),
    }.items():
        model = models[name]
        path = folder / expected[3] if expected[3] else None
        assert (model.feature_type, model.layer, model.normalize) == expected[:3]
        assert model.ckpt_path == path
    learned = {name: model for name, model in models.items() if name not in released}
    assert list(learned) == [*(f"moonshine{size}" for size in (50, 100, 200, 500)), "mfcc100"]
    for name, model in learned.items():
        assert name == f"{model.feature_type}{model.clusters}"
        home = SHIPPED if name == "moonshine100" else folder
        assert model.km_path == home / f"{name}_km.npz"
        assert model.lm_folder == home / f"{name}_lm"
        assert name == "mfcc100" or model.ckpt_path.name == "moonshine_tiny_en.ort"
    (folder / "moonshine_tiny_en.ort").touch()  # is used instead of the repository's copy
    assert listed_unit_model("moonshine50", workspace).ckpt_path == folder / "moonshine_tiny_en.ort"


@pytest.mark.parametrize("made", ["moonshine100_lm", "moonshine100_km.npz"])
def test_shipped_files_are_used_until_others_are_made(
    workspace: Workspace, folder: Path, made: str
) -> None:
    """The LM that ships belongs to the k-means that ships."""
    model = listed_unit_model("moonshine100", workspace)
    assert (model.lm_folder, model.km_path.parent) == (SHIPPED / "moonshine100_lm", SHIPPED)
    (folder / made).mkdir()
    assert model.lm_folder == workspace.lm("moonshine100")
    assert (model.km_path == model.learned_kmeans) == made.endswith("npz")
    assert model.shipped.lm_folder == SHIPPED / "moonshine100_lm"
    assert model.shipped.km_path.parent == SHIPPED


def test_a_unit_model_in_the_users_table(workspace: Workspace, folder: Path) -> None:
    (folder / USER_TABLE).write_text("""
checkpoints:
  mine: {path: models/mine.pt}
  by_hand: {path: pretrained_models/hubert_base_ls960.pt}
unit_models:
  mine500: {feature_type: hubert, checkpoint: mine, layer: 9, clusters: 500, lm: {path: ~/lm500}}
  hubert_new:
    feature_type: hubert
    checkpoint: hubert_base_ls960
    layer: 6
    clusters: 100
    kmeans: {url: "https://example.org/new.bin"}
""")
    mine = listed_unit_model("mine500", workspace)
    assert mine.ckpt_path == workspace.root / "models" / "mine.pt"
    assert mine.lm_folder == Path.home() / "lm500"
    assert mine.km_path == folder / "mine500_km.npz", "to be learned"
    new = listed_unit_model("hubert_new", workspace)
    assert new.ckpt_path == listed_unit_model("hubert100", workspace).ckpt_path
    assert new.lm_folder == workspace.lm("hubert_new")
    elsewhere = find_unit_model("made_elsewhere", workspace)
    assert elsewhere.feature_type is None and not elsewhere.files
    assert elsewhere.lm_folder == workspace.lm("made_elsewhere")
    with pytest.raises(UserError, match=r"hubert_100: unknown \(did .*expected one of hubert50"):
        listed_unit_model("hubert_100", workspace)


@pytest.mark.parametrize(
    "text, message",
    [
        ("unit_models: {a: {feature_type: hubert, clusters: 9, layers: 6}}", "layers"),
        ("unit_models: {a: {feature_type: hubert, clusters: many}}", "clusters"),
        ("unit_models: {a: {feature_type: hubert, clusters: 0}}", "clusters must be positive"),
        ("unit_models: {a: {clusters: 9}}", "feature_type"),
        ("unit_models: {hubert100: {MODEL}}", "hubert100: .* has this name"),
        ("unit_models: {../a: {MODEL}}", "expected letters, digits"),
        ("unit_models: {a: {MODEL, checkpoint: b}}", "checkpoint b: unknown"),
        ("unit_models: {a: {MODEL, lm: {url: x.tgz}}}", "a.lm: expected http.s.:.*or a base_url"),
        ("unit_models: {a: {MODEL, lm: {url: 'http://x/y', path: z}}}", "exactly one of url, path"),
        ("unit_models: {a: {MODEL, lm: {url: 'file:///y'}}}", "expected http.s.:"),
        ("unit_models: {a: {MODEL, lm: {url: 'http://u:p@x/y'}}}", "expected http.s.:"),
        ("unit_models: {a: {MODEL, lm: {url: 'http://x/a b'}}}", "expected http.s.:"),
        ("checkpoints: {a: {wheel: {file: b-1-py3-none-any.whl, member: c}}}", "sha256"),
        ("checkpoints: {a: {wheel: {file: b.zip, sha256: SHA, member: c}}}", "expected wheel"),
        ("checkpoints: {a: {url: 'http://x/%2e%2e%2fa.pt'}}", "must end in a file name"),
        ("checkpoints: {a: {url: 'http://x/download.py'}}", "must end in a file name"),
        ("checkpoints: {a: {url: 'http://x/hubert_base_ls960.pt'}}", "would both become"),
    ],
)
def test_an_invalid_table(workspace: Workspace, folder: Path, text: str, message: str) -> None:
    text = text.replace("MODEL", "feature_type: hubert, clusters: 9").replace("SHA", "a" * 64)
    (folder / USER_TABLE).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        unit_models(workspace)
    assert USER_TABLE in str(error.value) and "\n" not in str(error.value)
