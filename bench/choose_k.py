"""How often each criterion finds the number of classes: development and validation sets of docs/lab/choosing-k.md.

    make bench-photos                                # first: it trains the networks of the digits
    make bench-choose-k ARGS='--cifar10 FOLDER'      # FOLDER has test and train, each with a folder for each class

Sets whose features or images are missing are skipped, with a line that says what they need. Labels draw the sets and
enter the comparison; they steer nothing.

Results are kept in STATE/rows.jsonl, a line for each set with all curves: run the same command to resume. After a
change of code or features delete the lines in question, or STATE.
"""

import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import choose_k_sets
from choose_k_sets import NOTHING, KnownSet
from common import ROOT, head, line, parser
from photos import read_rows

from conr import propose_clusters
from conr.files import write_text

CANDIDATES = range(2, 41)
NEAR = 0.2  # of the number of classes
SEED = 0
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Propose K for the sets that are missing, and print the tables."""
    flags = parser(__doc__)
    flags.add_argument("--cifar10", type=Path, help="CIFAR-10 as files: test and train, in a folder for each class")
    flags.add_argument("--photos", type=Path, default=ROOT / ".conr/photos", help="what bench-photos has kept")
    flags.add_argument("--parts", nargs="+", choices=choose_k_sets.PARTS, default=list(choose_k_sets.PARTS))
    flags.add_argument("--state", type=Path, default=ROOT / ".conr/choose-k", help="folder of what is finished")
    given = flags.parse_args(arguments)
    file = given.state / "rows.jsonl"
    write_text(file, "".join(f"{json.dumps(row)}\n" for row in read_rows(file)))
    done = {key_of(row) for row in read_rows(file)}
    for part in given.parts:
        for known in choose_k_sets.known_sets(part, given.photos, given.cifar10, given.state):
            if known.key not in done:
                row = proposed(known)
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(f"{json.dumps(row)}\n")
                print(f"{', '.join(known.key)}: {row['choices']}, {row['processor']:.0f} s", flush=True)
    found = tables([row for row in read_rows(file) if row["part"] in given.parts])
    write_text(given.state / "tables.md", found)
    print(found)


def proposed(known: KnownSet) -> Row:
    """What the criteria say about a set."""
    features, started = known.load(), time.process_time()
    proposal = propose_clusters(features, CANDIDATES, seed=SEED)
    return {
        **dict(zip(("part", "features", "set"), known.key, strict=True)),
        "count": len(features),
        "classes": known.clusters,
        "processor": round(time.process_time() - started, 2),
        **proposal.model_dump(mode="json"),
    }


def key_of(row: Row) -> tuple[str, str, str]:
    """The set that a line is about."""
    return row["part"], row["features"], row["set"]


def tables(rows: Sequence[Row]) -> str:
    """How often each criterion is right, by part and by features, and what is proposed for each set, as Markdown."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    grouped = [row for row in rows if row["features"] != NOTHING]
    text = [head("part", "criterion", "sets", "exactly", "within ± 20 %", "median of K / classes")]
    for part in parts:
        own = [row for row in grouped if row["part"] == part]
        text += [line(part, name, *shares(own, name)) for name in names_of(own)]
    text += ["", "Within ± 20 %, by features:", "", head("part", "features", "sets", *names_of(grouped))]
    for part in parts:
        for features in dict.fromkeys(row["features"] for row in grouped if row["part"] == part):
            own = [row for row in grouped if (row["part"], row["features"]) == (part, features)]
            text.append(line(part, features, len(own), *(f"{near(own, name):.0%}" for name in names_of(grouped))))
    text += ["", "Proposals:", "", head("part", "features", "set", "classes", "K", "clear", "other criteria")]
    for row in rows:
        others = ", ".join(f"{name} {row['choices'][name] or '–'}" for name in names_of([row])[1:])
        text.append(line(*key_of(row), row["classes"], row["clusters"], "yes" if row["clear"] else "no", others))
    return "\n".join(text) + "\n"


def names_of(rows: Iterable[Row]) -> list[str]:
    """The criteria, the deciding one first."""
    return sorted(
        {name: 0 for row in rows for name in row["choices"]},
        key=lambda name: any(name != row["criterion"] for row in rows),
    )


def shares(rows: Sequence[Row], name: str) -> Iterator[str]:
    """Cells: the number of sets, the share exactly right and near, and the median ratio; no choice is a wrong one."""
    ratios = [row["choices"][name] / row["classes"] for row in rows if row["choices"][name]]
    exact = sum(ratio == 1 for ratio in ratios) / len(rows)
    yield from (str(len(rows)), f"{exact:.0%}", f"{near(rows, name):.0%}")
    yield f"{statistics.median(ratios):.2f}" if ratios else "–"


def near(rows: Sequence[Row], name: str) -> float:
    """The share of sets whose K differs from the number of classes by at most a fifth."""
    found = [row["choices"][name] or 0 for row in rows]
    return statistics.mean(abs(k / row["classes"] - 1) <= NEAR + 1e-9 for k, row in zip(found, rows, strict=True))


if __name__ == "__main__":
    main()
