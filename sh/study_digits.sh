#!/usr/bin/env bash
# Natural training, AT, TRADES6, LBGAT0, LBGAT6 and IKL on handwritten digits (16x16, shipped with scikit-learn): equal
# epochs, three seeds, epsilon 0.1 and 0.2, standard AutoAttack on 100 test images. About an hour on two cores; a rerun
# resumes. Then the tables: results/study-digits.
# The settings are the quickstart's; the last epoch is attacked, and no epoch or setting is chosen on test images.

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements-dev.txt
export OMP_NUM_THREADS=1 STUDY=${STUDY:-study-digits} EPOCHS=${EPOCHS:-40} N_EXAMPLES=${N_EXAMPLES:-100}
seeds=${SEEDS:-1 2 3}

run() { # NAME EPSILON STEP_SIZE SEED FLAGS...
    local mark=$1-epsilon$2-seed$4 epsilon=$2 step_size=$3 seed=$4
    shift 4
    [ -s "Logs/$STUDY/$mark/autoattack.json" ] && return
    "$PYTHON" train_lbgat.py "$@" --dataset digits --student wrn-10-1 --guide wrn-10-1 \
        --epochs "$EPOCHS" --lr 0.1 --warmup-factor 0.2 --decay-epochs 4/5,37/40 \
        --batch-size 32 --momentum 0.9 --weight-decay 2e-4 \
        --norm linf --epsilon "$epsilon" --step-size "$step_size" --num-steps 4 --val-size 137 --save-freq 1000 \
        --seed "$seed" --log-dir "Logs/$STUDY" --checkpoint-dir "checkpoints/$STUDY" --mark "$mark" >/dev/null 2>&1 &&
        "$PYTHON" eval_autoattack.py --checkpoint "checkpoints/$STUDY/$mark/last.pt" --epsilon "$epsilon" \
            --n-examples "$N_EXAMPLES" --log-dir "Logs/$STUDY" --mark "$mark" 2>/dev/null | tail -n 1 | sed "s/^/$mark  /" ||
        { echo "error: $mark failed: see Logs/$STUDY/$mark/" >&2; return 255; }
}
export -f run

for epsilon in "0.1 0.04" "0.2 0.08"; do
    for seed in $seeds; do
        while read -r name flags; do
            echo "$name $epsilon $seed $flags"
        done <<'EOF'
natural --method natural
at --method at
trades6 --method trades --beta 6
lbgat0 --method lbgat --beta 0
lbgat6 --method lbgat --beta 6
ikl --method ikl
EOF
    done
done | xargs -P "${PROCESSES:-2}" -L 1 bash -c 'run "$@"' run

exec "$PYTHON" -m results.study "Logs/$STUDY" --out "results/$STUDY"
