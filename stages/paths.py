"""Where every artifact lives, relative to the project's root; dvc.yaml names the same paths."""

from pathlib import Path

STORE = Path("artifacts/store")
PRETRAINED = Path("artifacts/pretrain/weights.safetensors")
PRETRAIN_LOG = Path("artifacts/pretrain/log.csv")
FINETUNED = Path("artifacts/finetune/weights.safetensors")
FINETUNE_LOG = Path("artifacts/finetune/log.csv")
FURTHER_SEEDS = Path("artifacts/seeds")  # weights and log of every seed after the first
SEEDS = FURTHER_SEEDS / "seeds.json"  # all of them, in order
ENCODER = Path("artifacts/encoder.onnx")
PRETRAINED_EMBEDDINGS = Path("artifacts/embeddings/pretrained.npy")
EMBEDDINGS = Path("artifacts/embeddings/finetuned.npy")
FURTHER_EMBEDDINGS = Path("artifacts/embeddings/seeds")  # an .npy file for every seed after the first
EMBEDDED = Path("artifacts/embeddings/embedded.json")  # of which seeds they are, by which encoder
METRICS = Path("results/metrics.json")
SUMMARY = Path("results/summary.txt")
ASSIGNMENTS = Path("results/assignments.csv")
CENTROIDS = Path("results/centroids.npy")
CLUSTERED = Path("results/centroids.json")  # the hash of the encoder that the centroids belong to
REPORT = Path("results/report.html")
FIGURES = Path("results/figures")
PLOTS = Path("results/plots")
SWEEPS = Path("results/sweeps")
ABLATION = Path("results/ablation")
CHECKPOINTS = Path(".conr/checkpoints")  # scratch, no artifact: below $DVC_ROOT
EXPERIMENTS = Path(".conr/experiments")  # likewise
TRIALS = Path(".conr")  # likewise; conr estimate writes below it and cleans up
