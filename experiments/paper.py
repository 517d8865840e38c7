"""The papers' tables: the cells in paper.yaml, the runs of a cell, and the files it still needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from omegaconf import MISSING

from experiments.runs import BASELINES, Outcome, Run, has_rows, outcome, result_path
from experiments.tables import Figure
from pipeline.config import load_config, load_yaml
from pipeline.errors import UserError
from pipeline.unit_models import find_unit_model, lm_folder
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.prompt_data.tasks import Pair, load_task, task_names
from ulm_prompt.training.ulm_run import OURS

FOLDER = Path(__file__).parent
PAPERS = {"v1": FOLDER / "paper.yaml", "v2": FOLDER / "paper_v2.yaml"}  # SpeechPrompt's
TASK = "task"  # a prompt trained as the task's config says
PROMPTS = ("PT", "PT-v2", "v2", TASK)
METHODS = (*PROMPTS, "FT-LM", *BASELINES)
FIRST_SEED = 100501  # the published seed
SAMPLE_DATE = "tables"


@dataclass
class TaskEntry:
    """The metric of a task, where to get the corpus, and the size of the test split."""

    metric: str = MISSING
    corpus: str = MISSING
    test_utterances: int | None = None


@dataclass
class Cell:
    """One method on one task and unit model; paper.yaml explains the fields."""

    method: str = MISSING
    task: str = MISSING
    unit_model: str = MISSING
    published: float | None = None
    parameters: str | None = None
    source: str | None = None
    prompt: int | None = None
    own_lm: list[str] = field(default_factory=list)
    set: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.method} {self.task} {self.unit_model}"

    @property
    def pair(self) -> Pair:
        return Pair(self.task, self.unit_model, load_task(self.task))


@dataclass
class Paper:
    """The contents of paper.yaml, or of another file in this format."""

    mean: bool = False  # True: one row per task, then their mean; False: one column per task
    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)


def load_paper(path: Path) -> Paper:
    """Read a list of cells. Raises ``UserError`` if the file differs from paper.yaml's format."""
    paper = load_config(Paper, path)
    methods = paper.methods.keys() & set(METHODS)
    for cell in paper.cells:
        if cell.method not in methods or cell.task not in paper.tasks:
            raise UserError(f"{path}: {cell}: expected a method and a task listed above the cells")
        if cell.method in PROMPTS and not cell.prompt:
            raise UserError(f"{path}: {cell}: prompt is missing; add the published prompt length")
    return paper


def all_tasks(unit_model: str, knobs: list[str], workspace: Workspace) -> Paper:
    """Return a table of every task with a corpus or rows in the workspace. ``knobs`` change every
    run. Raises ``UserError`` if no task has either.
    """
    paper = Paper(mean=True, methods={TASK: "the prompt as ulm_prompt/config/<TASK>.yaml says"})
    for name in task_names():
        config = load_task(name)
        cell = Cell(TASK, name, unit_model, prompt=config.prefix_prompt_length, set=knobs)
        if has_rows(cell.pair, workspace) or _corpus_folder(cell, workspace).is_dir():
            metric = "WER" if config.is_text else "accuracy"
            paper.tasks[name] = TaskEntry(metric, f"{config.downstream}'s corpus (docs/tasks.md)")
            paper.cells.append(cell)
    if skipped := [name for name in task_names() if name not in paper.tasks]:
        print(f"skipped, found neither corpus nor rows: {', '.join(skipped)}")
    if not paper.cells:
        raise UserError(
            f"{workspace.root}: no task has a corpus or rows; docs/tasks.md says where to get the "
            "corpora, and preprocess/<downstream>/config.yaml where to put them"
        )
    return paper


def survey(paper: Paper, seeds: int, workspace: Workspace) -> tuple[list[Figure], dict[str, str]]:
    """Find each cell's finished runs: the first ``seeds`` seeds, then more until one is missing.
    Return the figures, and for the runs that do not count: run name -> reason.
    """
    figures: list[Figure] = []
    unusable: dict[str, str] = {}
    for cell in paper.cells:
        for seed in count(FIRST_SEED):
            run = run_of(cell, seed, workspace)
            exists = result_path(run, workspace).is_file()
            if not exists and seed >= FIRST_SEED + seeds:
                break
            try:
                if exists and (result := outcome(run, workspace)):
                    metric = paper.tasks[cell.task].metric
                    figures.append(_figure(run, result, metric, workspace))
            except UserError as error:
                unusable[str(run)] = str(error)
    return figures, unusable


def _figure(run: Run, result: Outcome, metric: str, workspace: Workspace) -> Figure:
    """Return the run's figure. Raises ``UserError`` if the test scores have no ``metric``."""
    if (value := result.test[metric]) is None:
        raise UserError(f"the test scores contain no {metric}")
    lm = "own" if _is_from_train_ulm(workspace, run.pair.unit_model) else "released"
    facts = ("trained_parameters", "lm_parameters", "lm_fingerprint", "updates")
    return Figure(
        *(run.row, run.pair.task, run.pair.unit_model, run.seed, round(value, 4)),
        lm="" if run.baseline else lm,
        git_revision=result.record["made_by"]["git_revision"],
        **{name: result.record[name] for name in facts if name in result.record},
    )


def run_of(cell: Cell, seed: int, workspace: Workspace) -> Run:
    """Return the cell's run with one seed."""
    date, seed_knob = f"{cell.method}-seed{seed}", f"seed={seed}"
    pair = cell.pair
    if baseline := BASELINES.get(cell.method):
        return Run(cell.method, pair, seed, date, date, baseline, knobs=(seed_knob,))
    has_own_lm = _is_from_train_ulm(workspace, cell.unit_model)
    recipe = {"v2": "v2", TASK: pair.config.recipe}.get(cell.method, "published")
    learnable = ["verbalizer=learnable"] if cell.method == "PT-v2" or recipe == "v2" else []
    is_prompt = cell.method != "FT-LM"
    return Run(
        cell.method, pair, seed, date, SAMPLE_DATE,
        recipe=("fast" if has_own_lm else recipe) if is_prompt else None,
        fine_tune=not is_prompt,
        published_length=cell.prompt if is_prompt else None,
        knobs=(*(cell.own_lm if has_own_lm else ()), *cell.set, *learnable, seed_knob),
        dtype="float32",  # a published figure must not depend on the machine's fastest format
    )  # fmt: skip


def missing(cell: Cell, paper: Paper, workspace: Workspace) -> list[str]:
    """Return a line ``missing path: how to get it`` per missing file; empty if the cell can run."""
    is_text, on_features = cell.pair.config.is_text, cell.method == "FT-DM"
    if on_features and is_text:
        return [f"missing {cell.task}: SUPERB's downstream model (43M) is not implemented"]
    flags = cell.unit_model + f" --workspace {workspace.root}" * (workspace.root != REPOSITORY)
    download = f"python pretrained_models/download.py {flags} --only"
    data = workspace.downstream_data(cell.pair.config.downstream) / cell.unit_model
    corpus, root = paper.tasks[cell.task].corpus, _corpus_folder(cell, workspace)
    is_demo = cell.method != TASK and (root / "demo.json").is_file()  # the paper did not score it
    rows_are_demo = is_demo and (data / "quantized").is_dir()
    model = find_unit_model(cell.unit_model, workspace)
    needed: dict[Path | str, str] = {}
    instead = []
    if on_features or rows_are_demo or not has_rows(cell.pair, workspace):
        if not root.is_dir():
            needed[root] = corpus
        elif is_demo:
            needed[root] = f"contains the demo's corpus; choose another --workspace for {corpus}"
        if not model.feature_type:
            needed[cell.unit_model] = "describe it in pretrained_models/my_unit_models.yaml"
        for part in model.checkpoint.parts if model.feature_type and model.checkpoint else ():
            if not part.exists():
                needed[part] = f"{download} checkpoint"
        if model.feature_type and not on_features and not model.km_path.is_file():
            learn = f"python preprocess/runner.py --action learn_kmeans --unit_model {flags}"
            needed[model.km_path] = f"{download} kmeans" if model.kmeans else learn
        if needed and not on_features and cell.method != TASK:
            instead = [f"instead of corpus, checkpoint, k-means: rows, if you have them, in {data}"]
    elif is_text and not (data / "labels.json").is_file():
        needed[data / "labels.json"] = "what each label number of these rows means"
    lm = lm_folder(workspace, cell.unit_model)
    has_lm = (lm / "checkpoint_best.pt").is_file() and (lm / "dict.txt").is_file()
    if cell.method not in BASELINES and not has_lm:
        train = f"python ulm_prompt/train_ulm.py --date tables --config medium --unit_model {flags}"
        needed[lm] = f"{download} lm, or {train}" if model.lm else train
    return [*(f"missing {path}: {how}" for path, how in needed.items()), *instead]


def _corpus_folder(cell: Cell, workspace: Workspace) -> Path:
    config = load_yaml(REPOSITORY / "preprocess" / cell.pair.config.downstream / "config.yaml")
    return workspace.root / Path(config["datarc"]["root_path"]).expanduser()


def _is_from_train_ulm(workspace: Workspace, unit_model: str) -> bool:
    """Check whether train_ulm.py trained the unit LM: also true of the LM that ships."""
    return (lm_folder(workspace, unit_model) / OURS).exists()
