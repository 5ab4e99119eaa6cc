#!/bin/bash
# Builds a dataset on several nodes, which see assets and dataset under the same path: a Ray cluster for this job alone.
#   sbatch --nodes 8 deploy/slurm.sh --source folder:/shared/meshes --out /shared/forge
# Options are those of `seqtex build`. Nodes are used whole; where not all have equally many processors, say how many are
# to be used of each (`sbatch --cpus-per-task 32 ...`). Two minutes before the time limit the build is stopped and this
# job queues itself again: finished jobs are kept. On preemption SLURM does so (PreemptMode=REQUEUE). Any failure of the
# build itself ends it.
#SBATCH --job-name=seqtex-build
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
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
: "${START_S:=120}"   # seconds that Ray has to start on the first node

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch [sbatch options] $0 <options of seqtex build>" >&2
    exit 2
fi

interrupted=no
build=
stop() {
    interrupted=yes
    [[ -z $build ]] || kill -INT "$build" 2>/dev/null || true
}
trap stop USR1
trap 'jobs -p | xargs --no-run-if-empty kill 2>/dev/null || true' EXIT

again() {
    echo "interrupted: job $SLURM_JOB_ID queues again and goes on where it was"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}

# Without a token anyone who reaches these nodes could run code on them. This one is the job's own; srun hands it on.
RAY_AUTH_TOKEN=$(head --bytes=32 /dev/urandom | sha256sum | cut --delimiter=' ' --fields=1)
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# A node that falls silent is missed after a minute, not after Ray's five.
export RAY_grpc_client_keepalive_time_ms=60000 RAY_grpc_client_keepalive_timeout_ms=20000

# This script runs on the first node, whose own name often stands for 127.0.1.1 there: of no use to the others.
# HEAD_IP names another of its addresses, if the first is in the wrong network.
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
found=$(getent ahostsv4 "$head" | awk '$1 !~ /^127\./ {print $1; exit}') || true
: "${HEAD_IP:=${found:-$(hostname --all-ip-addresses | cut --delimiter=' ' --fields=1)}}"
address=$HEAD_IP:$((20000 + SLURM_JOB_ID % 20000)) # jobs on one node do not meet
cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}

# A processor of the first node is left to the build itself. srun does not take the number over from sbatch.
srun --nodes=1 --ntasks=1 --relative=0 --cpus-per-task="$cpus" \
    "$RAY" start --head --block --node-ip-address="$HEAD_IP" --port="${address#*:}" \
    --num-cpus=$((cpus > 1 ? cpus - 1 : 1)) &
started=$!
until said=$(timeout 30 "$RAY" status --address="$address" 2>&1); do
    [[ $interrupted == no ]] || again
    kill -0 "$started" 2>/dev/null || { echo "Ray did not start on $head ($HEAD_IP): $said" >&2; exit 1; }
    ((SECONDS < START_S)) || { echo "Ray does not answer at $address after $START_S s: $said" >&2; exit 1; }
    sleep 1
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    others=$((SLURM_JOB_NUM_NODES - 1))
    # A node that fails takes no other one with it: its jobs are done by those that are left.
    srun --nodes="$others" --ntasks="$others" --relative=1 --cpus-per-task="$cpus" --kill-on-bad-exit=0 \
        "$RAY" start --block --address="$address" --num-cpus="$cpus" &
fi
[[ $interrupted == no ]] || again

set -m # else the shell has what it starts beside itself ignore SIGINT, upon which a build lets go of its lock
"$SEQTEX" build "$@" --address "$address" &
build=$!
set +m
[[ $interrupted == no ]] || stop # in between
status=0
wait "$build" || status=$?
if [[ $interrupted == yes ]]; then
    wait "$build" || true # the trap cut the first wait short
    again
fi
exit "$status"
