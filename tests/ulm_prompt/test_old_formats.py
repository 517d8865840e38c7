"""The stages accept LMs and prompts that the original software wrote (shared/data/old_formats)."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.files import read_json
from pipeline.rows import read_rows
from pipeline.workspace import Workspace
from tests.ulm_prompt import spoken
from tests.ulm_prompt.in_process import stage
from tests.ulm_prompt.test_decoding import uncached
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.checkpoint import load
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.lm import load_unit_lm
from ulm_prompt.prompt_lm.search import Options, decode

LMS = ("lm_fairseq_e55e094", "lm_fairseq_0.10.2")
UNIT_MODEL = "hubert100"
POSITIONS = "decoder.embed_positions.weights"
SAMPLED = ("--sample_date", "d", "--dtype", "float32")


@pytest.fixture(scope="module")
def old(data: Path) -> Path:
    """The folder of files that the original software wrote."""
    return data / "old_formats"


@pytest.fixture(scope="module")
def published(old: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with KS's published rows after the data stages, and the published prompts' LM."""
    workspace = Workspace(tmp_path_factory.mktemp("published"))
    rows = workspace.rows("speech_commands", UNIT_MODEL, "train").parent
    shutil.copytree(data / "units" / UNIT_MODEL / "speech_commands", rows, copy_function=_copy)
    lm = workspace.lm(UNIT_MODEL)
    lm.mkdir(parents=True)
    _copy(old / "published_prompts" / "lm_checkpoint_best.pt", lm / "checkpoint_best.pt")
    _copy(data / "golden" / UNIT_MODEL / "dict.txt", lm / "dict.txt")
    for name in ("make_data", "gen_labelspace", "verbalizer"):
        stage(f"ulm_prompt/{name}.py", "--workspace", workspace.root)
    return workspace


def _copy(source: Path | str, target: Path | str) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def in_one_projection(weights: dict) -> None:
    """Join queries, keys and values into one weight, as in 2018."""
    for layer in range(3):
        name = f"decoder.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{name}{part}_proj.{kind}") for part in "qkv"]
            weights[f"{name}in_proj_{kind}"] = torch.cat(parts)


def half(weights: dict) -> None:
    """Convert the weights to half precision, as ``--fp16`` stores them."""
    weights.update({name: weight.half() for name, weight in weights.items()})


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (lambda weights: weights.pop("decoder.version"), 0.0),
        (lambda weights: weights.update({POSITIONS: torch.randn(258, 128)}), 0.0),
        (lambda weights: weights.pop("decoder.output_projection.weight"), 0.0),
        (in_one_projection, 0.0),
        (half, 1e-3),
    ],
    ids=["no version", "a table of sines", "before 2019", "in one projection", "fp16"],
)
def test_an_lm_of_any_age_is_the_same(
    old: Path, tmp_path: Path, change: Callable[[dict], object], tolerance: float, is_zip: bool
) -> None:
    folder = old / "lm_fairseq_e55e094"
    state = torch.load(folder / "checkpoint_best.pt", weights_only=False)
    state["extra_state"]["ema"] = {"decoder.version": torch.zeros(1)}
    change(state["model"])
    _copy(folder / "dict.txt", tmp_path / "dict.txt")
    target = tmp_path / "checkpoint_best.pt"
    torch.save(state, target, _use_new_zipfile_serialization=is_zip)
    expected = load_unit_lm(folder).model.state_dict()
    for name, weight in load_unit_lm(tmp_path).model.state_dict().items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, expected[name], rtol=tolerance, atol=tolerance / 1000)


def sample(workspace: Workspace, checkpoint: Path, date: str) -> dict:
    """Copy the checkpoint to its place, as a user does, and decode all of test."""
    _copy(checkpoint, workspace.checkpoints("KS", UNIT_MODEL, date) / "checkpoint_best.pt")
    flags = ("--workspace", workspace.root, "--model_date", date, *SAMPLED)
    stage("ulm_prompt/sample.py", *flags)
    return json.loads(workspace.samples("KS", UNIT_MODEL, date, "d").read_text())


@pytest.mark.parametrize(
    ("name", "most_changed"),
    [("pubL/checkpoint_best.pt", 0), ("prompt_and_lm.pt", 0), ("prompt_and_lm_half.pt", 5)],
)
def test_a_published_prompt_gives_the_published_answers(
    published: Workspace, old: Path, name: str, most_changed: int
) -> None:
    """The file contains only the prompt, or also its LM. Half precision changes a few answers."""
    expected = json.loads((old / "published_prompts" / "pubL" / "samples.json").read_text())
    actual = sample(published, old / "published_prompts" / name, name.replace("/", "_"))
    assert len(actual) == len(expected) == 3081
    for key in ("file_name", "src", "label"):
        assert [row[key] for row in actual.values()] == [row[key] for row in expected.values()]
    changed = sum(actual[row]["predict"] != expected[row]["predict"] for row in expected)
    assert changed <= most_changed


def test_the_published_sample_file_is_scored(published: Workspace, old: Path) -> None:
    """It has no second file, decoded within the label set."""
    path = published.samples("KS", UNIT_MODEL, "theirs", "published")
    _copy(old / "published_prompts" / "pubL" / "samples.json", path)
    rows = json.loads(path.read_text()).values()
    right = 100 * sum(row["label"] == row["predict"] for row in rows) / len(rows)
    command = ("--workspace", published.root, "--sample_date", "published")
    printed = stage("ulm_prompt/cal_acc.py", *command, "--report")
    assert f"{right:.2f} %" in printed and "within labels" not in printed
    assert "confusion matrix" in printed


def test_a_published_fine_tuned_checkpoint_decodes_with_its_own_weights(
    published: Workspace, old: Path
) -> None:
    """Compare with the stock model over the whole row, in which ``<s>`` is replaced before the
    embedding is scaled.
    """
    checkpoint = old / "published_prompts" / "pubft" / "checkpoint_best.pt"
    samples = sample(published, checkpoint, "fine_tuned")
    state = torch.load(checkpoint, weights_only=False)["model"]
    unit_lm = load_unit_lm(published.lm(UNIT_MODEL))
    model, symbols = unit_lm.model, unit_lm.dictionary
    frozen = model.decoder.embed_tokens.weight.clone()
    tuned = {name: value for name, value in state.items() if name in model.state_dict()}
    model.load_state_dict(tuned, strict=True)
    assert not torch.equal(frozen, model.decoder.embed_tokens.weight)
    sep = state["decoder.sep_embed.weight"][0]
    model.decoder.embed_tokens.register_forward_hook(
        lambda _, tokens, out: torch.where((tokens[0] == 0).unsqueeze(-1), sep, out)
    )
    for row in list(samples.values())[::60]:
        read = [symbols.eos()] + [symbols.index(word) for word in row["src"].split()]
        answer = [symbols.index(word) for word in row["predict"].split()]
        with torch.no_grad():
            logits = model(torch.tensor([read + answer]))[0][0, len(read) - 1 :]
        logits[:, symbols.pad()] = -torch.inf
        assert logits.argmax(-1).tolist() == [*answer, symbols.eos()]
    right = sum(row["label"] == row["predict"] for row in samples.values())
    assert right > 0.6 * len(samples)


def test_a_published_infix_prompt_decodes_as_published(published: Workspace, old: Path) -> None:
    """Compare with the stock layers, with the infix positions inserted, symbol by symbol. (This
    prompt was hardly trained: its answers are long and wrong.)
    """
    folder = old / "published_prompts" / "pubinf"
    model, unit_lm = load(folder, published.lm(UNIT_MODEL))
    symbols, prompt = unit_lm.dictionary, model.prompt
    assert prompt.infix and prompt.length == 5
    test = read_rows(published.rows("speech_commands", UNIT_MODEL, "test"))
    texts = [f"</s> {row.units} <s>".split() for row in list(test)[::100]]
    rows = [torch.tensor([symbols.index(word) for word in text]) for text in texts]
    sets = LabelSets.build("set", [[4]], len(symbols), symbols.eos())
    lm = CachedLM(model, symbols.pad(), symbols.eos())
    for decoded in itertools.chain(*decode(lm, rows, sets, Options(max_labels=8))):
        row, answer = rows[decoded.row], decoded.free.symbols
        logits = uncached(model, row, answer)
        logits[:, symbols.pad()] = -torch.inf
        assert logits.argmax(-1)[:-1].tolist() == answer


@pytest.fixture(scope="module")
def heard(spoken_workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A copy of the spoken workspace, without its LM."""
    root = tmp_path_factory.mktemp("heard")
    shutil.copytree(spoken_workspace.root, root, dirs_exist_ok=True)
    shutil.rmtree(root / "checkpoints")
    return Workspace(root)


@pytest.mark.parametrize("name", LMS)
def test_an_old_lm_through_all_stages(heard: Workspace, old: Path, name: str) -> None:
    """It trains, decodes, predicts, and makes the k-means verbalizer."""
    unit_model, lm, root = spoken.UNIT_MODEL, heard.lm(spoken.UNIT_MODEL), heard.root

    def run(script: str, *flags: object) -> str:
        return stage(f"ulm_prompt/{script}.py", *flags, "--workspace", root)

    shutil.rmtree(lm)
    for file in ("checkpoint_best.pt", "dict.txt"):
        _copy(old / name / file, lm / file)
    ks = ("--unit_model", unit_model, "--prompt_task", "KS")
    run("fairseq_preprocess", *ks)
    run("train", *ks, "--date", name, "--prefix_prompt_length", 2, "--set", "max_update=2")
    run("sample", *ks, "--model_date", name, *SAMPLED)
    assert read_json(heard.samples("KS", unit_model, name, "d"), "")["0"]["predict"]
    clip = next((root / "corpora" / "speech_commands").rglob("yes/*.wav"))
    folder = heard.checkpoints("KS", unit_model, name)
    assert clip.name in run("predict", clip, "--prompt", folder, "--format", "jsonl")
    run("verbalizer", *ks, "--method", "kmeans")
    run("verbalizer", *ks)
