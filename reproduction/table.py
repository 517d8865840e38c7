"""The tables in Markdown: ours below the published figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from reproduction.cells import Cell, Paper
from reproduction.figures import Figure
from ulm_prompt.scoring.scores import wilson

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
