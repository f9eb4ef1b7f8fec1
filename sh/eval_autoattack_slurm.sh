#!/usr/bin/env bash
# Run AutoAttack on the GPUs of a cluster, from the repository's root:
# sbatch [--nodes=2 ...] sh/eval_autoattack_slurm.sh --checkpoint FILE [...]
# After a time limit or a failure of a node, submit the same command again: it resumes.
#SBATCH --job-name=autoattack
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=autoattack-%j.out

# Slurm runs a copy of this file from another folder.
cd "${SLURM_SUBMIT_DIR:?submit this script: sbatch sh/eval_autoattack_slurm.sh --checkpoint FILE}"
[ -f sh/_env.sh ] || { echo "error: submit this script from the repository's root" >&2 && exit 1; }
. sh/_env.sh requirements.txt
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))" \
    eval_autoattack.py "$@"
