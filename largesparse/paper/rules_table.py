"""The table of the trainings that compare rules of evolution."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..harness import pages
from . import reported as paper
from .rules import MEANINGS, RuleProtocol, RuleTraining
from .tables import NOT_MEASURED, NOTHING, Run, markdown

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: tuple[str, ...] = (
    *("data set", "density", "epochs", "optimizer", "rule", "seeds", "rate", "decay"),
    *("accuracy %", "CPU s", "connections", "explored %"),
)
RESULTS = COLUMNS[-4:]
NAMES = {"sgd": "SGD", "adamw": "AdamW"}

Find = Callable[[RuleTraining], Run | None]


def table_of(rows: Sequence[tuple[str, Sequence[RuleTraining]]], find: Find) -> pd.DataFrame:
    """Return the table, of texts: a row for every (name, trainings of several seeds).

    `find` returns the record of a training, where there is one.
    """
    import pandas as pd

    return pd.DataFrame([_line(*row, find) for row in rows], columns=list(COLUMNS))


def _line(name: str, row: Sequence[RuleTraining], find: Find) -> list[str]:
    one, config = row[0], row[0].training
    found = [run for training in row if (run := find(training)) is not None]
    scores = [100 * run["accuracy"][0] for run in found if run["accuracy"][0] is not None]
    line = [one.dataset, f"{one.density:.3g}", f"{config.epochs}", one.optimizer, name]
    line += [str(len(found)), f"{config.learning_rate:g}", f"{config.weight_decay:.2g}"]
    if not found:
        return [*line, NOT_MEASURED, NOTHING, NOTHING, NOTHING]
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    accuracy = f"{statistics.mean(scores):.2f}{spread}" if scores else NOTHING
    if count := len(found) - len(scores):
        accuracy += f" ({count} diverged)"
    elif len(found) < len(row):
        accuracy += f" ({len(found)} of {len(row)} seeds)"
    line += [accuracy, f"{statistics.median(run['cpu_s'][0] for run in found):.1f}"]
    line.append(f"{statistics.mean(run['nnz'][-1] for run in found):,.0f}")
    explored = [100 * run["explored"] for run in found if run["explored"] is not None]
    return [*line, f"{statistics.mean(explored):.1f}" if explored else NOTHING]


def parts_of(table: pd.DataFrame, protocol: RuleProtocol) -> list[tuple[str, str, pd.DataFrame]]:
    """Return (heading, what was chosen, table) of every data set and density.

    A table has a row for each rule, with the results by each optimizer next to each other.
    """
    import pandas as pd

    parts = []
    for (dataset, density, epochs), part in table.groupby(["data set", "density", "epochs"],
                                                          sort=False):  # fmt: skip
        most = protocol.rows_of(str(dataset))
        sizes = "-".join(map(str, paper.TASKS[str(dataset)].layer_sizes))
        heading = (
            f"{dataset}, {sizes}, {float(str(density)):.0%} of the connections: {epochs} epochs of "
            f"{'all' if most is None else f'{most:,}'} training rows"
        )
        by_optimizer, chosen = [], []
        for optimizer, rows in part.groupby("optimizer", sort=False):
            name = NAMES[str(optimizer)]
            results = rows.set_index("rule")[list(RESULTS)]
            results.columns = [f"{name}: {results.columns[0]}", *results.columns[1:]]
            by_optimizer.append(results)
            for (rate, decay), those in rows.groupby(["rate", "decay"], sort=False):
                share = len(those) / len(rows)
                rules = "others" if share > 0.5 else ", ".join(those["rule"])
                of = "" if share == 1 else f" ({rules})"
                chosen.append(f"{name} η {rate}, decay {decay}{of}")
        wide = pd.concat(by_optimizer, axis=1).fillna(NOTHING)
        wide.insert(0, "rule", wide.index)
        parts.append((heading, "; ".join(chosen), wide))
    return parts


def show(table: pd.DataFrame, folder: str, protocol: RuleProtocol) -> None:
    """Print the table in parts, in Markdown, and keep it as CSV and HTML."""
    sections = []
    for heading, chosen, part in parts_of(table, protocol):
        if set(part.iloc[:, 1::4].to_numpy().ravel()) == {NOT_MEASURED}:
            print(f"\n### {heading}\n\n{NOT_MEASURED}")
            continue
        print(f"\n### {heading}\n\n{chosen}\n")
        print(markdown(list(part.columns), part.to_numpy().tolist()))
        sections += [pages.paragraph(chosen, heading=heading), pages.table(part)]
    for name, meaning in MEANINGS.items():
        sections.append(pages.paragraph(f"{name}: {meaning}"))
    place = pages.make_folder(folder)
    table.to_csv(place / "rules.csv", index=False)
    text = pages.page("Rules of evolution", sections)
    (place / "rules.html").write_text(text, encoding="utf-8")
    print(f"\n{place / 'rules.csv'}\n{place / 'rules.html'}")
