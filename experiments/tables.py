"""Tables as CSV and Markdown: the figure of a run, and the papers' tables with our figures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from pipeline.errors import UserError
from pipeline.files import writing
from pipeline.workspace import REPOSITORY
from ulm_prompt.scoring.scores import wilson

if TYPE_CHECKING:
    from experiments.paper import Paper

FIGURES = REPOSITORY / "docs" / "results.csv"
DOCUMENT = REPOSITORY / "docs" / "results.md"
CHART = REPOSITORY / "docs" / "results.png"  # in README.md
# Markdown does not show the marks
MARKS = "<!-- tables: python reproduce.py --write_docs -->\n", "<!-- end of tables -->\n"
EMPTY = "–"
Key, Item = TypeVar("Key"), TypeVar("Item")


@dataclass(frozen=True)
class Figure:
    """The result of one run, ``value`` in %, and what the run used."""

    method: str
    task: str
    unit_model: str
    seed: int
    value: float
    trained_parameters: int = 0  # 0: not counted
    lm: str = ""  # released | own; empty for the baselines
    lm_parameters: int = 0
    lm_fingerprint: str = ""
    updates: int = 0  # of the decoded checkpoint
    git_revision: str = ""

    @property
    def cell(self) -> str:
        """The same text as ``str(Cell)``."""
        return f"{self.method} {self.task} {self.unit_model}"


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> None:
    with writing(path) as handle:
        table = csv.DictWriter(handle, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. The first row is the head."""
    head, *lines = (f"| {' | '.join(row)} |\n" for row in rows)
    return head + "|---" * (head.count(" | ") + 1) + "|\n" + "".join(lines)


def grouped(items: Iterable[tuple[Key, Item]]) -> dict[Key, list[Item]]:
    """Group the items by key. Keys and items keep their order."""
    groups: dict[Key, list[Item]] = {}
    for key, item in items:
        groups.setdefault(key, []).append(item)
    return groups


def spread(values: Sequence[float]) -> str:
    """Return ``mean ± sample standard deviation`` with two decimals; "" without values."""
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def write_figures(path: Path, figures: Iterable[Figure]) -> None:
    """Write a CSV with one line per run."""
    write_csv(path, [asdict(figure) for figure in figures], Figure.__dataclass_fields__)


def read_figures(path: Path) -> list[Figure]:
    """Read the CSV of ``write_figures``. Raises ``UserError`` if it is another table."""
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
    """Add the ``earlier`` figures of all other cells, and sort in the tables' order. The figures of
    one cell come from one workspace, those of a table may come from several.
    """
    filled = {figure.cell for figure in figures}
    merged = [*figures, *(figure for figure in earlier if figure.cell not in filled)]
    methods = list(paper.methods)
    return sorted(merged, key=lambda f: (methods.index(f.method), f.unit_model, f.task, f.seed))


def put_table(path: Path, table: str, marks: tuple[str, str] = MARKS) -> None:
    """Replace the text between the marks. Raises ``UserError`` if a mark is missing."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise UserError(f"{path}: expected the marks {marks[0].strip()} and {marks[1].strip()}")
    with writing(path) as handle:
        handle.write(before + begin + table + end + after)


def render(paper: Paper, figures: Sequence[Figure]) -> str:
    """Return Markdown: one table of the tasks with an accuracy, and one of the other tasks.

    Each has one column per task and unit model, and per method a row of published figures and a
    row of ours. With ``paper.mean``: one table, one row per task, and the mean accuracy.
    """
    runs = grouped((figure.cell, figure) for figure in figures)
    measured, published = {}, {}
    for cell in paper.cells:
        utterances = paper.tasks[cell.task].test_utterances
        measured[str(cell)] = _measured_entry(runs.get(str(cell), []), utterances)
        if cell.published:
            notes = "; ".join(filter(None, (cell.parameters, cell.source)))
            published[str(cell)] = f"*{cell.published:.2f}* ({notes})"
    columns = list(dict.fromkeys((cell.task, cell.unit_model) for cell in paper.cells))
    scored = [column for column in columns if paper.tasks[column[0]].metric == "accuracy"]
    if not paper.mean:
        groups = scored, [column for column in columns if column not in scored]
        return "\n".join(_by_method(paper, measured, published, group) for group in groups if group)
    titles = [f"{method}: {description}" for method, description in paper.methods.items()]
    rows = [["task", "score, %", "units", "paper", *titles]]
    for task, model in columns:
        names = [f"{method} {task} {model}" for method in paper.methods]
        paper_entry = next((published[name] for name in names if name in published), EMPTY)
        entries = (measured.get(name, EMPTY) for name in names)
        rows.append([task, paper.tasks[task].metric, model, paper_entry, *entries])
    rows.append(["**mean over tasks**", "accuracy", "", ""])
    for method in paper.methods:
        cells = [runs.get(f"{method} {task} {model}") for task, model in scored]
        values = [mean(figure.value for figure in cell) for cell in cells if cell]
        text = f"**{mean(values):.2f}** ({len(values)} of {len(scored)})" if values else EMPTY
        rows[-1].append(text)
    return markdown(rows)


def _by_method(
    paper: Paper,
    measured: Mapping[str, str],
    published: Mapping[str, str],
    columns: Sequence[tuple[str, str]],
) -> str:
    """Return a table with up to two rows per method: the paper's figures, and ours."""
    rows = [["%", *(f"{task} {paper.tasks[task].metric}, {model}" for task, model in columns)]]
    for method, description in paper.methods.items():
        names = [f"{method} {task} {model}" for task, model in columns]
        titled = {f"*{method}, paper*": published, f"**{method}** ({description})": measured}
        for title, entries in titled.items():
            if entries.keys() & set(names):
                rows.append([title, *(entries.get(name, EMPTY) for name in names)])
    return markdown(rows)


def _measured_entry(figures: Sequence[Figure], utterances: int | None) -> str:
    """Return the text of a cell: mean ± standard deviation over seeds, 95 % interval for a test
    split of ``utterances``, number of seeds, trained parameters, and the LM if it is our own.
    """
    if not figures:
        return EMPTY
    values, first = [figure.value for figure in figures], figures[0]
    average, _, deviation = spread(values).partition(" ")
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
    """Round a count to millions: 151,263,232 -> 151M, 77,824 -> 0.08M."""
    return f"{count / 1e6:.{0 if count >= 1e7 else 1 if count >= 1e6 else 2}f}M"
