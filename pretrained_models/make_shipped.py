"""Create pretrained_models/shipped/ again: the models that predict.py uses after ``make setup``.

They are a k-means of ``moonshine100``, a tiny unit LM over these units, and a prompt for ten
commands, _unknown_ and _silence_. All are trained on the train speakers of one corpus in the layout
of Speech Commands v0.01. The test speakers give the accuracy in the prompt's README. The files in
the repository were made from the clips of the demo:

python demo/clips.py --out corpora
python pretrained_models/make_shipped.py --corpus corpora/speech_commands

The same corpus gives the same numbers on the same kind of processor.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from pipeline.errors import run
from pipeline.files import read_json, replacing_folder, write_json
from pipeline.runs import run_script
from pipeline.unit_models import listed_unit_model
from pipeline.workspace import Workspace
from ulm_prompt.training.ulm_run import OURS

UNIT_MODEL, DATE, LICENCE = "moonshine100", "shipped", "CC-BY-4.0"
SHIPPED = Path(__file__).resolve().parent / "shipped"
PROMPT = f"commands_{UNIT_MODEL}"
RECIPE = "max_update=1500 batch_size=32 unit_noise=0.2 best_by=loss"
AUDIO = (
    "preprocess/runner.py --downstream speech_commands --set datarc.root_path={corpus} "
    "datarc.train=each_once datarc.valid=each_once --action"
)
STAGES = (
    f"{AUDIO} generate_manifest",
    f"{AUDIO} learn_kmeans",
    f"{AUDIO} quantized",
    f"{AUDIO} postprocess",
    "ulm_prompt/make_data.py",
    "ulm_prompt/gen_labelspace.py",
    "ulm_prompt/verbalizer.py",
    f"ulm_prompt/train_ulm.py --date {DATE} --config tiny --set max_update=300",
    "ulm_prompt/fairseq_preprocess.py",
    f"ulm_prompt/train.py --date {DATE} --prompt_task KS --recipe fast --prefix_prompt_length 20 "
    f"--set {RECIPE}",
    f"ulm_prompt/sample.py --model_date {DATE} --sample_date {DATE} --dtype float32",
    f"ulm_prompt/export.py --prompt_task KS --model_date {DATE} --license {LICENCE} "
    "--out {prompt}",
)


def make(corpus: Path, workspace: Workspace) -> None:
    """Run all stages in ``workspace``, a new folder, and copy the models to SHIPPED."""
    kmeans = listed_unit_model(UNIT_MODEL, workspace).learned_kmeans
    prompt = workspace.root / PROMPT
    for stage in STAGES:
        command = [word.format(corpus=corpus, prompt=prompt) for word in stage.split()]
        if run_script([*command, "--unit_model", UNIT_MODEL, "--workspace", workspace.root]):
            raise SystemExit(1)
    with replacing_folder(SHIPPED) as folder:
        shutil.copyfile(SHIPPED / "LICENSE.md", folder / "LICENSE.md")
        shutil.copyfile(kmeans, folder / kmeans.name)
        lm = folder / f"{UNIT_MODEL}_lm"
        shutil.copytree(workspace.lm(UNIT_MODEL), lm)
        record = read_json(lm / OURS, "ulm_prompt/train_ulm.py")
        write_json(lm / OURS, {key: value for key, value in record.items() if key != "command"})
        shutil.copytree(prompt, folder / PROMPT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    content = "folder with speech_commands_v0.01/ and speech_commands_test_set_v0.01/"
    parser.add_argument("--corpus", type=Path, required=True, help=content)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(args.corpus.resolve(), Workspace(Path(folder) / "workspace"))
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    print(f"wrote {SHIPPED}: {size:,} bytes")


if __name__ == "__main__":
    run(main)
