"""ConNR on other self-supervised frameworks than BYOL: scores before and after the ConNR stage, digits.

    make bench-hosts         # seeds 0-4, about 25 minutes on two CPU cores

Fewer epochs than the preset's, for time: 60 + 40. BYOL itself is the preset, and in Table 2.

Prints a Markdown table. What is finished is kept (.conr/bench): the same command goes on where it was stopped. The
settings of each host were chosen on seeds 100 and 101. Labels enter the scores only.
"""

from rows import head, line, outcomes

from stages.experiments import Experiment

NAMES = {"simsiam": "SimSiam", "moco": "MoCo v2", "barlow-twins": "Barlow Twins"}
SHARED = {
    "pretrain.epochs": 60,
    "finetune.epochs": 40,
    "optimiser.warmup_epochs": 3,
    "optimiser.schedule_epochs": 100,
}
ROWS = (
    Experiment(
        "simsiam", {"host.framework": "simsiam", "pretrain.predictor_rate": 1.0, "finetune.predictor_rate": 1.0}
    ),
    Experiment("moco", {"host.framework": "moco", "finetune.instance": 1.0}),
    Experiment("barlow-twins", {"host.framework": "barlow-twins", "finetune.instance": 1.0}),
)


def main() -> None:
    """Run every host with every seed and print the table."""
    seeds, found = outcomes(__doc__, SHARED, ROWS)
    print(head(seeds, ["mean ± std", "NMI"]))
    for row in ROWS:
        name = NAMES[row.name]
        print(line(name, [outcome.pretrained for outcome in found[row.name]], ["acc", "nmi"]))
        print(line(f"{name} + ConNR", [outcome.finetuned for outcome in found[row.name]], ["acc", "nmi"]))


if __name__ == "__main__":
    main()
