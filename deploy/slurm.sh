#!/bin/bash
# Builds a dataset on several nodes, which see assets and dataset under the same path: a Ray cluster for this job alone.
#   sbatch --nodes 8 deploy/slurm.sh --source folder:/shared/meshes --out /shared/forge
# Options are those of `seqtex build`. Two minutes before the time limit, or on preemption, the build is stopped and this
# job queues itself again: finished jobs are kept. Any failure of the build itself ends it.
#SBATCH --job-name=seqtex-build
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=seqtex-build-%j.log

set -euo pipefail

: "${SEQTEX:=seqtex}" # the commands, for an environment elsewhere: SEQTEX=/shared/venv/bin/seqtex
: "${RAY:=ray}"       # and RAY=/shared/venv/bin/ray

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch [sbatch options] $0 <options of seqtex build>" >&2
    exit 2
fi

# Without a token anyone who reaches these nodes could run code on them. This one is the job's own; srun hands it on.
RAY_AUTH_TOKEN=$(head --bytes=32 /dev/urandom | sha256sum | cut --delimiter=' ' --fields=1)
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$head:$((20000 + SLURM_JOB_ID % 20000)) # jobs on one node do not meet
trap 'jobs -p | xargs --no-run-if-empty kill 2>/dev/null || true' EXIT

# A processor of the first node is left to the build itself.
srun --nodes=1 --ntasks=1 --relative=0 "$RAY" start --head --block --node-ip-address="$head" --port="${address#*:}" \
    --num-cpus=$((SLURM_CPUS_PER_TASK > 1 ? SLURM_CPUS_PER_TASK - 1 : 1)) &
started=$!
until "$RAY" status --address="$address" >/dev/null 2>&1; do
    kill -0 "$started" 2>/dev/null || { echo "Ray did not start on $head" >&2; exit 1; }
    sleep 1
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    others=$((SLURM_JOB_NUM_NODES - 1))
    # A node that fails takes no other one with it: its jobs are done by those that are left.
    srun --nodes="$others" --ntasks="$others" --relative=1 --kill-on-bad-exit=0 \
        "$RAY" start --block --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" &
fi

interrupted=no
"$SEQTEX" build "$@" --address "$address" &
build=$!
trap 'interrupted=yes; kill -TERM "$build"' USR1
status=0
wait "$build" || status=$?
if [[ $interrupted == yes ]]; then
    wait "$build" || true # the trap cut the first wait short
    echo "interrupted: job $SLURM_JOB_ID queues again and goes on where it was"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
