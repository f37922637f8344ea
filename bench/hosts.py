"""ConNR on other self-supervised frameworks than BYOL: scores before and after the ConNR stage, digits.

    make bench-hosts         # seeds 0-4, about 40 minutes on two CPU cores

Prints a Markdown table. What is finished is kept (.conr/bench): the same command goes on where it was stopped. The
settings of each host were chosen on seeds 100 and 101. Labels enter the scores only.
"""

from rows import line, outcomes

from stages.experiments import Experiment

NAMES = {"byol": "BYOL", "simsiam": "SimSiam", "moco": "MoCo v2", "barlow-twins": "Barlow Twins"}
ROWS = (
    Experiment("byol", {}),
    Experiment(
        "simsiam", {"host.framework": "simsiam", "pretrain.predictor_rate": 1.0, "finetune.predictor_rate": 1.0}
    ),
    Experiment("moco", {"host.framework": "moco", "finetune.instance": 1.0}),
    Experiment("barlow-twins", {"host.framework": "barlow-twins", "finetune.instance": 1.0}),
)


def main() -> None:
    """Run every host with every seed and print the table."""
    found = outcomes(__doc__, {}, ROWS)
    seeds = len(next(iter(found.values())))
    print(f"\n| ACC{' |' * (seeds + 1)} median | mean ± std | NMI |\n|---|{'---|' * (seeds + 3)}")
    for row in ROWS:
        name = NAMES[row.name]
        print(line(name, [outcome.pretrained for outcome in found[row.name]], ["acc", "nmi"]))
        print(line(f"{name} + ConNR", [outcome.finetuned for outcome in found[row.name]], ["acc", "nmi"]))


if __name__ == "__main__":
    main()
