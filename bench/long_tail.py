"""Long-tailed digits: the largest class has ten times the images of the smallest; ACC and class-averaged ACC.

    make bench-long-tail     # seeds 0-4, about 10 minutes on two CPU cores

Prints a Markdown table.
What is finished is kept (.conr/bench): the same command goes on where it was stopped. Labels choose the data set and
enter the scores; they steer nothing.
"""

from rows import head, line, outcomes

from stages.experiments import Experiment

SHARED = {"prepare.imbalance": 10.0}
ROWS = (
    Experiment("BYOL, as many epochs", {"neighbourhood.neighbours": "none"}),
    Experiment("ConNR", {}),
    Experiment("ConNR + prototype scattering", {"finetune.scattering": 0.1}),
    Experiment("ConNR + DCBoost", {"finetune.boost": 1.0}),
    Experiment("ConNR + both", {"finetune.scattering": 0.1, "finetune.boost": 1.0}),
)


def main() -> None:
    """Run every row with every seed and print the table."""
    seeds, found = outcomes(__doc__, SHARED, ROWS)
    scores = ["acc", "class_acc", "nmi"]
    print(head(seeds, ["mean ± std", "class-averaged ACC", "NMI"]))
    print(line("BYOL", [outcome.pretrained for outcome in found["ConNR"]], scores))
    for row in ROWS:
        print(line(row.name, [outcome.finetuned for outcome in found[row.name]], scores))


if __name__ == "__main__":
    main()
