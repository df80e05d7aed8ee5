"""What `coca ablate` found, as a result file and as the table of docs/ablations.md.

    coca ablate --out runs/ablate                       # hours; goes on where it was
    python benchmarks/ablations.py runs/ablate --time   # alone on the machine: seconds of a step, then the result

Without --time, the seconds that are there already are taken.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import write_result

from opencoca.files import write_atomically
from opencoca.jobs.ablate.gather import gather, read_runs, read_timing, write_results
from opencoca.jobs.ablate.job import measure_time
from opencoca.jobs.ablate.page import MEASURES
from opencoca.jobs.ablate.runs import Lab
from opencoca.jobs.ablate.settings import STEPS, TABLES

DOCS = Path(__file__).parent.parent / "docs" / "ablations.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def main() -> None:
    """Gathers, and writes the result and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that `coca ablate --out` was given")
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--time", action="store_true", help="measure every setting's step again")
    parser.add_argument("--dry", action="store_true", help="write no result, print the table")
    chosen = parser.parse_args()
    tables = list(TABLES.values())
    if chosen.time:
        measure_time(chosen.out, tables, Lab(chosen.data, chosen.steps), print, again=True)
    runs = read_runs(chosen.out)
    found = gather(runs, read_timing(chosen.out), tables)
    write_results(chosen.out, tables, chosen.steps)
    text = markdown(found)
    if chosen.dry:
        print(text)
        return
    seeds = sorted({seed for of in runs.values() for seed in of})
    write_result("ablations", {"steps": chosen.steps, "seeds": seeds, "runs": sum(map(len, runs.values())), **found})
    page = DOCS.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    write_atomically(DOCS, f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    print(DOCS)


def markdown(found: dict[str, Any]) -> str:
    """All tables in Markdown, a row per setting: mean (least to greatest), cost, and the paper's figures."""
    parts = []
    for key, table in found["tables"].items():
        names = [name for name in TABLES[key].measures if any(name in row["measures"] for row in table["rows"])]
        head = ["setting", "seeds", *(MEASURES[name].name for name in names), "operations", "time"]
        head += [f"paper: {column}" for column in table["paper_columns"]]
        lines = [
            f"### {f'Table 8{key}: ' if len(key) == 1 else ''}{table['title']}",
            "",
            f"| {' | '.join(head)} |",
            f"|---|{'---:|' * (len(head) - 1)}",
        ]
        for row in table["rows"]:
            cells = [row["title"], str(len(row["seeds"])), *(_cell(row["measures"].get(name), name) for name in names)]
            cells.append(f"{row['cost']['training']:.2f}x" if "cost" in row else "")
            cells.append(f"{row['cost_by_time']:.2f}x" if "cost_by_time" in row else "")
            lines.append(f"| {' | '.join([*cells, *row['paper']])} |")
        parts.append("\n".join([*lines, ""]))
    if found["gradients"]:
        parts.append(_gradients(found["gradients"]))
    return "\n".join(parts)


def _gradients(rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if name.endswith("_cosine")]
    lines = ["### Cosine of the two objectives' gradients, CoCa", ""]
    lines += [
        f"| step | {' | '.join(name.removesuffix('_cosine') for name in names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for row in rows:
        cells = [f"{row[n]['mean']:+.2f} ({row[n]['least']:+.2f} to {row[n]['greatest']:+.2f})" for n in names]
        lines.append(f"| {row['step']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(measured: dict[str, Any] | None, name: str) -> str:
    """The mean with its range; in bold where the interval of its difference from the reference leaves 0 out."""
    if measured is None:
        return ""
    percent = MEASURES[name].unit == "%"
    values = [f"{100 * measured[k]:.1f}" if percent else f"{measured[k]:.2f}" for k in ("mean", "least", "greatest")]
    less = measured["less_reference"]
    bounds = less["interval"] if less is not None else None
    strong = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
    mean = f"**{values[0]}**" if strong else values[0]
    return f"{mean} ({values[1]} to {values[2]})" if len(measured["values"]) > 1 else mean


if __name__ == "__main__":
    main()
