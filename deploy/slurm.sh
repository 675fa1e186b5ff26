#!/bin/bash
# Pretrain on several nodes of a Slurm cluster, one process per GPU:
#
#   sbatch --nodes 2 deploy/slurm.sh recipes/speech.toml DATA runs/speech
#
# The program, the data and the run directory must be on a shared file system. The recipe's
# train.accumulate must be a multiple of the number of processes (see docs/scale.md). Two minutes
# before the time limit the run saves a checkpoint and stops, and the job is requeued: the same
# command resumes.
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

# The processes find each other through Slurm's variables. If one fails, the step ends.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  target/release/data2vec pretrain "$1" --data "$2" --out "$3" "${@:4}"
code=$?

# 143: saved and stopped after SIGTERM.
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
