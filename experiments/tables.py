"""Tables as CSV and Markdown: a run's figure, and the paper's tables with our figures."""

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
        table = csv.DictWriter(handle, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *lines = (f"| {' | '.join(row)} |\n" for row in rows)
    return head + "|---" * (head.count(" | ") + 1) + "|\n" + "".join(lines)


def grouped(items: Iterable[tuple[Key, Item]]) -> dict[Key, list[Item]]:
    """The items of each key, both in their order."""
    groups: dict[Key, list[Item]] = {}
    for key, item in items:
        groups.setdefault(key, []).append(item)
    return groups


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
    before, begin, rest = path.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise UserError(f"{path}: expected the marks {marks[0].strip()} and {marks[1].strip()}")
    with writing(path) as handle:
        handle.write(before + begin + table + end + after)


def render(paper: Paper, figures: Sequence[Figure]) -> str:
    """Markdown: a table of the tasks that are scored by accuracy, and one of the others.

    A column for each unit model and task; for each method ours below the published figures. With
    ``paper.mean`` one table, a row for each of them, and the mean over those with an accuracy.
    """
    runs = grouped((figure.cell, figure) for figure in figures)
    ours, published = {}, {}
    for cell in paper.cells:
        ours[str(cell)] = _ours(runs.get(str(cell), []), paper.tasks[cell.task].test_utterances)
        if cell.published:
            notes = "; ".join(filter(None, (cell.parameters, cell.source)))
            published[str(cell)] = f"*{cell.published:.2f}* ({notes})"
    columns = list(dict.fromkeys((cell.task, cell.unit_model) for cell in paper.cells))
    scored = [column for column in columns if paper.tasks[column[0]].metric == "accuracy"]
    if not paper.mean:
        groups = scored, [column for column in columns if column not in scored]
        return "\n".join(_by_method(paper, ours, published, group) for group in groups if group)
    rows = [
        ["task", "score, %", "units", "paper", *(f"{m}: {w}" for m, w in paper.methods.items())]
    ]
    for task, model in columns:
        names = [f"{method} {task} {model}" for method in paper.methods]
        quoted = next((published[name] for name in names if name in published), EMPTY)
        entries = (ours.get(name, EMPTY) for name in names)
        rows.append([task, paper.tasks[task].metric, model, quoted, *entries])
    rows.append(["**mean over tasks**", "accuracy", "", ""])
    for method in paper.methods:
        cells = [runs.get(f"{method} {task} {model}") for task, model in scored]
        values = [mean(figure.value for figure in cell) for cell in cells if cell]
        text = f"**{mean(values):.2f}** ({len(values)} of {len(scored)})" if values else EMPTY
        rows[-1].append(text)
    return markdown(rows)


def _by_method(
    paper: Paper,
    ours: Mapping[str, str],
    published: Mapping[str, str],
    columns: Sequence[tuple[str, str]],
) -> str:
    """Two rows for each method that has cells: the paper's figures, and ours."""
    rows = [["%", *(f"{task} {paper.tasks[task].metric}, {model}" for task, model in columns)]]
    for method, what in paper.methods.items():
        names = [f"{method} {task} {model}" for task, model in columns]
        for texts, title in ((published, f"*{method}, paper*"), (ours, f"**{method}** ({what})")):
            if texts.keys() & set(names):
                rows.append([title, *(texts.get(name, EMPTY) for name in names)])
    return markdown(rows)


def _ours(figures: Sequence[Figure], utterances: int | None) -> str:
    """Mean ± standard deviation over seeds, its 95 % interval over ``utterances``, the number
    of seeds, trained parameters, and the LM when it is not the released one.
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
    """151,263,232 -> 151M, 77,824 -> 0.08M."""
    return f"{count / 1e6:.{0 if count >= 1e7 else 1 if count >= 1e6 else 2}f}M"
