"""A run's figure, and tables of them as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, stdev

from experiments.paper import METHODS, Cell, Paper
from pipeline.errors import UserError
from pipeline.files import writing
from pipeline.workspace import REPOSITORY
from ulm_prompt.scoring.scores import wilson


@dataclass(frozen=True)
class Figure:
    """One run: ``value`` in %, and what it was made with."""

    method: str
    task: str
    unit_model: str
    seed: int
    value: float
    trained_parameters: int = 0  # 0: not counted
    lm: str = ""  # released | own; none for the baselines
    lm_parameters: int = 0
    lm_fingerprint: str = ""
    updates: int = 0  # at the checkpoint that was decoded
    git_revision: str = ""

    @property
    def run_name(self) -> str:
        """As ``Cell.run_name``."""
        return f"{self.method} {self.task} {self.unit_model} seed {self.seed}"


def write_figures(path: Path, figures: Iterable[Figure]) -> None:
    """Write a CSV, a line a run."""
    with writing(path) as handle:
        table = csv.DictWriter(handle, [f.name for f in fields(Figure)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(figure) for figure in figures)


def read_figures(path: Path) -> list[Figure]:
    """Read such a CSV. Raises ``UserError`` for another table."""
    types = {"seed": int, "value": float, "trained_parameters": int, "lm_parameters": int,
             "updates": int}  # fmt: skip
    with open(path, encoding="utf-8", newline="") as handle:
        try:
            return [
                Figure(**{name: types.get(name, str)(value) for name, value in row.items()})
                for row in csv.DictReader(handle)
            ]
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: not a table of figures ({error}); run reproduce.py") from None


def with_earlier(figures: Sequence[Figure], earlier: Iterable[Figure]) -> list[Figure]:
    """``figures``, and those of ``earlier`` whose cell has none among them, in a table's order: a
    cell is of one workspace, a table may be of several.
    """

    def cell(figure: Figure) -> tuple[str, str, str]:
        return figure.method, figure.task, figure.unit_model

    filled = {cell(figure) for figure in figures}
    every = [*figures, *(figure for figure in earlier if cell(figure) not in filled)]
    return sorted(every, key=lambda f: (METHODS.index(f.method), f.unit_model, f.task, f.seed))


# The tables in docs/results.md, between two marks that Markdown does not show.


FIGURES = REPOSITORY / "docs" / "results.csv"
DOCUMENTS = (REPOSITORY / "docs" / "results.md",)
BEGIN = "<!-- tables: python reproduce.py --write_docs -->\n"
END = "<!-- end of tables -->\n"


def put_table(path: Path, table: str) -> None:
    """Replace what stands between the marks. Raises ``UserError`` where they are missing."""
    before, _, after = split_at_marks(path)
    with writing(path) as handle:
        handle.write(before + BEGIN + table + END + after)


def split_at_marks(path: Path) -> tuple[str, str, str]:
    """The text before the marks, between them, and after them."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    between, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{path}: expected the marks {BEGIN.strip()} and {END.strip()}")
    return before, between, after


# The tables in Markdown: ours below the published figures.


EMPTY = "–"


def render(paper: Paper, figures: Sequence[Figure]) -> str:
    """A table of the tasks that are scored by accuracy, and one of the others: a column for each
    unit model and task, two rows for each method.
    """
    accuracy = [task for task, entry in paper.tasks.items() if entry.metric == "accuracy"]
    others = [task for task in paper.tasks if task not in accuracy]
    return "\n".join(_table(paper, figures, tasks) for tasks in (accuracy, others) if tasks)


def _table(paper: Paper, figures: Sequence[Figure], tasks: Sequence[str]) -> str:
    wanted = [cell for cell in paper.cells if cell.task in tasks]
    columns = list(dict.fromkeys((cell.unit_model, cell.task) for cell in wanted))
    titles = (f"{task} {paper.tasks[task].metric}, {unit_model}" for unit_model, task in columns)
    lines = [_row("%", titles), "|---" * (len(columns) + 1) + "|"]
    for method, what in paper.methods.items():
        cells = {(c.unit_model, c.task): c for c in wanted if c.method == method}
        ours = {
            column: [f for f in figures if (f.method, f.unit_model, f.task) == (method, *column)]
            for column in columns
        }
        if any(cell.published for cell in cells.values()):
            lines.append(_row(f"*{method}, paper*", (_published(cells.get(c)) for c in columns)))
        if cells:
            sizes = {column: paper.tasks[column[1]].test_utterances for column in columns}
            cells_of_ours = (_ours(ours[c], sizes[c]) for c in columns)
            lines.append(_row(f"**{method}** ({what})", cells_of_ours))
    return "\n".join(lines) + "\n"


def _row(title: str, entries: Iterable[str]) -> str:
    return f"| {title} | " + " | ".join(entries) + " |"


def _published(cell: Cell | None) -> str:
    if cell is None or cell.published is None:
        return EMPTY
    return f"*{cell.published:.2f}* ({cell.parameters})"


def _ours(figures: Sequence[Figure], utterances: int | None) -> str:
    """Mean ± standard deviation over seeds, its 95 % interval over ``utterances``, the number
    of seeds, trained parameters, and the LM that was not the released one.
    """
    if not figures:
        return EMPTY
    values = [figure.value for figure in figures]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    first = figures[0]
    if utterances:
        low, high = wilson(mean(values), utterances)
        spread += f" [{low:.1f}, {high:.1f}]"
    notes = [f"{len(values)} seeds"] if len(values) > 1 else []
    if first.trained_parameters:
        notes.append(millions(first.trained_parameters))
    if first.lm == "own" and first.method != "FT-LM":
        notes.append(f"own LM, {millions(first.lm_parameters)}")
    elif first.lm == "own":
        notes.append("own LM")
    return f"**{mean(values):.2f}**{spread}" + (f" ({'; '.join(notes)})" if notes else "")


def millions(count: int) -> str:
    """151,263,232 -> 151M, 77,824 -> 0.08M."""
    return f"{count / 1e6:.{0 if count >= 1e7 else 1 if count >= 1e6 else 2}f}M"
