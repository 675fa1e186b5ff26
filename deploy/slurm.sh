#!/bin/bash
# Pretraining on several machines of a Slurm cluster, one process for each GPU:
#
#   sbatch --nodes 2 deploy/slurm.sh recipes/speech.toml DATA runs/speech
#
# All machines must see the program, the data and the run's folder. The recipe's train.accumulate must be a multiple
# of the number of processes (see docs/scale.md). Two minutes before the time is over the run saves and stops, and the
# job is queued again: the same command goes on.
#SBATCH --job-name=data2vec
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -u
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# The processes find each other by Slurm's variables. One that fails ends the step.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  target/release/data2vec pretrain "$1" --data "$2" --out "$3" "${@:4}"
code=$?

# 143: stopped by SIGTERM and saved.
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
