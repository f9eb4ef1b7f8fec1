#!/usr/bin/env bash
# Train on the GPUs of a cluster, from the repository's root:
# sbatch [--nodes=2 --time=24:00:00 ...] sh/train_slurm.sh [sh/train_RECIPE.sh] [the flags of train_lbgat.py]
# Two minutes before the time limit, or when the job is preempted, the state is saved and the job queues again (status 75).
# The nodes need the same data; only the first one reads and writes checkpoints and logs.
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=train-%j.out

# Slurm runs a copy of this file from another folder.
cd "${SLURM_SUBMIT_DIR:?submit this script: sbatch sh/train_slurm.sh --dataset NAME ...}"
[ -f sh/_env.sh ] || { echo "error: submit this script from the repository's root" >&2 && exit 1; }
. sh/_env.sh requirements.txt
flags=("$@")
if [[ ${1:-} == *.sh ]]; then
    recipe=$(PRINT_FLAGS=1 bash "$1" "${@:2}")
    mapfile -t flags <<<"$recipe"
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
told_to_stop=
srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))" \
    train_lbgat.py ${flags[@]+"${flags[@]}"} &
trap 'told_to_stop=yes; kill -TERM $!' USR1 TERM # srun passes it on to all nodes
status=0
wait $! || status=$?
while kill -0 $! 2>/dev/null; do # a signal has ended the wait
    status=0
    wait $! || status=$?
done
if [ -n "$told_to_stop" ] && [ $status -ne 0 ]; then
    echo "told to stop: the job queues again and resumes" >&2
    scontrol requeue "$SLURM_JOB_ID"
    exit 75
fi
exit $status
