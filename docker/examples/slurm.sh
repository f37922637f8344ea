#!/usr/bin/env bash
# Embed the images of a project as an array job. In the project's folder, which all nodes share:
#
#   conr prepare && conr pretrain && conr finetune
#   job=$(sbatch --parsable slurm.sh)
#   sbatch --dependency="afterok:$job" --wrap "conr extract --shard merge && conr evaluate"
#
# A task that was ended starts again with `sbatch --array=NUMBER slurm.sh`; shards that are there are kept.
# Checked with bash -n, shellcheck and a conr that only notes how it is called. It has not run under Slurm.
#SBATCH --job-name=conr-extract
#SBATCH --array=1-16
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%A-%a.txt
set -euo pipefail

shards=16 # as in --array: the number of tasks differs where only some are run again
conr extract --shard "$SLURM_ARRAY_TASK_ID/$shards"
