"""Download released unit models: speech encoder, k-means and unit LM of each name.

An existing file is kept. A transfer that was cut resumes where it stopped. Each file is downloaded
under a temporary name, checked (see pretrained_models/registry.yaml), then renamed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.errors import UserError, run
from pipeline.runs import add_quiet
from pipeline.unit_models import UnitModel, listed_unit_model, unit_models
from pipeline.workspace import REPOSITORY, Workspace
from pretrained_models.fetching.pretrained import PretrainedModels

KINDS = ("checkpoint", "kmeans", "lm")


def main() -> None:
    """Download, list or verify the files of unit models."""
    args = parse_arguments()
    workspace = Workspace(args.workspace.resolve())
    known = unit_models(workspace, args.base_url)
    models = [listed_unit_model(name, workspace, args.base_url) for name in args.unit_model]
    pretrained = PretrainedModels(workspace)
    if not 0 < args.timeout <= 86_400:
        raise UserError(f"--timeout {args.timeout}: expected more than 0 seconds, at most a day")
    if args.list:
        print_table(models or list(known.values()), pretrained)
        return
    if not (models or args.verify):
        raise UserError(f"name the unit models to download; expected some of {', '.join(known)}")
    listed = [model.files for model in models or known.values()]
    requested = [files[kind] for files in listed for kind in args.only if kind in files]
    for file in dict.fromkeys(requested):  # unit models can share a file
        outcome = pretrained.verify(file) if args.verify else pretrained.get(file, args.timeout)
        if models or outcome != "missing":
            note = f" ({file.note})" if file.note else ""
            print(f"{file.path.name}: {outcome}{note}", flush=True)
    for model in models:
        explain(model)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("unit_model", nargs="*", help="for example hubert100 cpc100")
    flag("--list", action="store_true", help="print which files exist and which are missing")
    flag("--verify", action="store_true", help="compare existing files with the known sha256")
    flag("--only", nargs="+", choices=KINDS, default=KINDS, help="kinds of file (default: all)")
    flag("--base_url", help="a mirror with the same paths")
    flag("--timeout", type=float, default=60.0, help="seconds to wait for data (default: 60)")
    flag("--workspace", type=Path, default=REPOSITORY, help="data folder (default: the repository)")
    add_quiet(parser)
    return parser.parse_args()


def print_table(models: list[UnitModel], pretrained: PretrainedModels) -> None:
    """Print one line per unit model: which files exist and which are missing."""
    print(f"{pretrained.folder}\n")
    print(f"{'unit model':12} {'checkpoint':32} {'k-means':10} unit LM")
    for model in models:
        state = {kind: pretrained.state(file) for kind, file in model.files.items()}
        # files in no table are learned; a learned k-means is used before a listed k-means
        learned = {"kmeans": model.learned_kmeans, "lm": model.lm_folder}
        for kind, path in learned.items():
            if kind not in state or (kind == "kmeans" and path.exists()):
                state[kind] = "own" if path.exists() else "to learn"
        checkpoint = f"{state['checkpoint']:8}{model.ckpt_path.name}" if model.ckpt_path else "none"
        print(f"{model.name:12} {checkpoint:32} {state['kmeans']:10} {state['lm']}")
    print("\nhere: downloaded or shipped; own: your file; to learn: by learn_kmeans, train_ulm.py")


def explain(model: UnitModel) -> None:
    """Print the next command, and which k-means is used if two exist."""
    if not model.files:
        print(f"{model.name}: nothing to download; learn the k-means and the unit LM")
    if model.kmeans and model.kmeans.path.exists() and model.km_path != model.kmeans.path:
        print(f"note: {model.km_path.name} exists, and is used instead of the released k-means")
    print(f"next: python preprocess/runner.py --unit_model {model.name} --action generate_manifest")


if __name__ == "__main__":
    run(main)
