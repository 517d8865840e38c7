"""Tables as CSV and Markdown: a run's figure, and the paper's tables with our figures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, get_type_hints

from pipeline.errors import UserError
from pipeline.files import writing
from pipeline.workspace import REPOSITORY
from ulm_prompt.scoring.scores import wilson

if TYPE_CHECKING:
    from experiments.paper import Cell, Paper

FIGURES = REPOSITORY / "docs" / "results.csv"
DOCUMENT = REPOSITORY / "docs" / "results.md"
CHART = REPOSITORY / "docs" / "results.png"  # in README.md
# Markdown does not show the marks
MARKS = "<!-- tables: python reproduce.py --write_docs -->\n", "<!-- end of tables -->\n"
EMPTY = "–"


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
    def cell(self) -> str:
        """As ``str(Cell)``."""
        return f"{self.method} {self.task} {self.unit_model}"


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> None:
    with writing(path) as handle:
        table = csv.DictWriter(handle, list(columns), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *lines = (f"| {' | '.join(row)} |\n" for row in rows)
    return head + "|---" * (head.count(" | ") + 1) + "|\n" + "".join(lines)


def spread(values: Sequence[float]) -> str:
    """``mean ± sample standard deviation`` with two digits; nothing for no values."""
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def write_figures(path: Path, figures: Iterable[Figure]) -> None:
    """Write a CSV, a line a run."""
    write_csv(path, [asdict(figure) for figure in figures], Figure.__dataclass_fields__)


def read_figures(path: Path) -> list[Figure]:
    """Read such a CSV. Raises ``UserError`` for another table."""
    types = get_type_hints(Figure)
    with open(path, encoding="utf-8", newline="") as handle:
        try:
            return [
                Figure(**{name: types[name](value) for name, value in row.items()})
                for row in csv.DictReader(handle)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a table of figures ({error}); run reproduce.py") from None


def with_earlier(
    paper: Paper, figures: Sequence[Figure], earlier: Iterable[Figure]
) -> list[Figure]:
    """``figures``, and the ``earlier`` ones of other cells, in the tables' order: a cell is of one
    workspace, a table may be of several.
    """
    filled = {figure.cell for figure in figures}
    both = [*figures, *(figure for figure in earlier if figure.cell not in filled)]
    methods = list(paper.methods)
    return sorted(both, key=lambda f: (methods.index(f.method), f.unit_model, f.task, f.seed))


def put_table(path: Path, table: str, marks: tuple[str, str] = MARKS) -> None:
    """Replace the text between the marks. Raises ``UserError`` when they are missing."""
    before, _, after = split_at_marks(path, marks)
    with writing(path) as handle:
        handle.write(before + marks[0] + table + marks[1] + after)


def split_at_marks(path: Path, marks: tuple[str, str] = MARKS) -> tuple[str, str, str]:
    """The text before the marks, between them, and after them."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(marks[0])
    between, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise UserError(f"{path}: expected the marks {marks[0].strip()} and {marks[1].strip()}")
    return before, between, after


def render(paper: Paper, figures: Sequence[Figure]) -> str:
    """Markdown: a table of the tasks that are scored by accuracy, and one of the others.

    A column for each unit model and task; for each method ours below the published figures. With
    ``paper.mean`` one table, a row for each of them.
    """
    if paper.mean:
        return _by_task(paper, figures)
    accuracy = [task for task, entry in paper.tasks.items() if entry.metric == "accuracy"]
    others = [task for task in paper.tasks if task not in accuracy]
    return "\n".join(_table(paper, figures, tasks) for tasks in (accuracy, others) if tasks)


def _table(paper: Paper, figures: Sequence[Figure], tasks: Sequence[str]) -> str:
    wanted = [cell for cell in paper.cells if cell.task in tasks]
    columns = list(dict.fromkeys((cell.unit_model, cell.task) for cell in wanted))
    rows = [["%", *(f"{task} {paper.tasks[task].metric}, {model}" for model, task in columns)]]
    for method, what in paper.methods.items():
        cells = {(c.unit_model, c.task): c for c in wanted if c.method == method}
        if any(cell.published for cell in cells.values()):
            published = (_published(cells.get(column)) for column in columns)
            rows.append([f"*{method}, paper*", *published])
        if cells:
            rows.append([f"**{method}** ({what})"])
        for model, task in columns if cells else ():
            ours = [f for f in figures if f.cell == f"{method} {task} {model}"]
            rows[-1].append(_ours(ours, paper.tasks[task].test_utterances))
    return markdown(rows)


def _by_task(paper: Paper, figures: Sequence[Figure]) -> str:
    """A row for each task and unit model, then the mean over those that are scored by accuracy."""
    rows = [
        ["task", "score, %", "units", "paper", *(f"{m}: {w}" for m, w in paper.methods.items())]
    ]
    means: dict[str, list[float]] = {method: [] for method in paper.methods}
    columns = list(dict.fromkeys((cell.task, cell.unit_model) for cell in paper.cells))
    for task, model in columns:
        entry = paper.tasks[task]
        cells = [cell for cell in paper.cells if (cell.task, cell.unit_model) == (task, model)]
        published = next((cell for cell in cells if cell.published), None)
        rows.append([task, entry.metric, model, _published(published)])
        for method, values in means.items():
            ours = [figure for figure in figures if figure.cell == f"{method} {task} {model}"]
            rows[-1].append(_ours(ours, entry.test_utterances))
            if ours and entry.metric == "accuracy":
                values.append(mean(figure.value for figure in ours))
    count = sum(paper.tasks[task].metric == "accuracy" for task, _ in columns)
    ours = (f"**{mean(v):.2f}** ({len(v)} of {count})" if v else EMPTY for v in means.values())
    return markdown([*rows, ["**mean over tasks**", "accuracy", "", "", *ours]])


def _published(cell: Cell | None) -> str:
    if cell is None or cell.published is None:
        return EMPTY
    notes = "; ".join(filter(None, (cell.parameters, cell.source)))
    return f"*{cell.published:.2f}* ({notes})"


def _ours(figures: Sequence[Figure], utterances: int | None) -> str:
    """Mean ± standard deviation over seeds, its 95 % interval over ``utterances``, the number
    of seeds, trained parameters, and the LM when it is not the released one.
    """
    if not figures:
        return EMPTY
    values = [figure.value for figure in figures]
    average, _, deviation = spread(values).partition(" ")
    first = figures[0]
    if utterances:
        low, high = wilson(mean(values), utterances)
        deviation += f" [{low:.1f}, {high:.1f}]"
    notes = [f"{len(values)} seeds"] if len(values) > 1 else []
    if first.trained_parameters:
        notes.append(millions(first.trained_parameters))
    if first.lm == "own":
        size = "" if first.method == "FT-LM" else f", {millions(first.lm_parameters)}"
        notes.append(f"own LM{size}")
    text = f"**{average}** {deviation.strip()}".rstrip()
    return text + (f" ({'; '.join(notes)})" if notes else "")


def millions(count: int) -> str:
    """151,263,232 -> 151M, 77,824 -> 0.08M."""
    return f"{count / 1e6:.{0 if count >= 1e7 else 1 if count >= 1e6 else 2}f}M"


def report(
    table: str,
    figures: list[Figure],
    unusable: dict[str, str],
    lacking: dict[str, list[str]],
    folder: Path,
) -> None:
    """Print the tables and what is missing; save them in ``folder``. ``lacking``: what every
    chosen cell lacks.
    """
    write_figures(folder / "results.csv", figures)
    with writing(folder / "results.md") as handle:
        handle.write(table)
    print(f"\n{table}")
    filled = {figure.cell for figure in figures}
    needed_for: dict[str, list[str]] = {}
    for cell, lines in lacking.items():
        for line in lines:
            needed_for.setdefault(line, []).append(cell)
        if cell not in filled and not lines:
            print(f"{cell}: empty, and all that it needs is here")
    for name, reason in unusable.items():
        print(f"{name}: left out: {reason}")
    for line, cells in needed_for.items():
        print(f"missing {line}\n    for {', '.join(cells)}")
    print(f"\nwrote {folder}/results.csv and results.md")
