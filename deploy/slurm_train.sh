#!/bin/bash
# Trains on several nodes and goes on after preemption or the time limit, exactly where it stopped:
#   sbatch --nodes 4 deploy/slurm_train.sh --preset full --data.directory /data/forge --run.directory /data/run \
#     --data.batch_size 32
# The batch is shared out: a multiple of nodes x GPUs of a node x run.accumulate_grad_batches.
# Two minutes before the limit SLURM signals the ranks (on preemption too, with SlurmctldParameters
# preempt_send_user_signal and a GraceTime); they save their state at the end of the batch and exit with 75, upon which
# this job queues itself again. Any other failure ends it.
#SBATCH --job-name=seqtex
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=seqtex-%j.log

set -euo pipefail

readonly INTERRUPTED=75
readonly TOO_EARLY=138 # by the signal itself, before the run had anything to save
: "${SEQTEX:=seqtex}" # the command, for an environment elsewhere: SEQTEX=/shared/venv/bin/seqtex

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch [sbatch options] $0 <options of seqtex train>" >&2
    exit 2
fi

# One process a GPU. Never more threads than the process has cores: ranks that wait for each other gain nothing.
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# srun does not take the number of processors over from sbatch.
status=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 "$SEQTEX" train "$@" \
    --run.nodes "$SLURM_JOB_NUM_NODES" --run.devices "$SLURM_NTASKS_PER_NODE" || status=$?

if [[ $status -eq $INTERRUPTED || $status -eq $TOO_EARLY ]]; then
    echo "interrupted: job $SLURM_JOB_ID queues again and goes on from its newest state"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
