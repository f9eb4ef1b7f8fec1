#!/usr/bin/env bash
# Natural training, AT, TRADES6, LBGAT0, LBGAT6 and IKL on handwritten digits (16x16, shipped with scikit-learn): equal
# epochs, three seeds, epsilon 0.1 and 0.2, standard AutoAttack on 100 test images. About two hours on two cores; a rerun
# resumes. Then the tables: results/study-digits.
# The settings are the quickstart's; the last epoch is attacked, and no epoch or setting is chosen on test images.

. "$(dirname "${BASH_SOURCE[0]}")/_study.sh" study-digits 40 100

for epsilon in "0.1 0.04" "0.2 0.08"; do
    read -r epsilon step_size <<<"$epsilon"
    for seed in ${SEEDS:-1 2 3}; do
        while read -r name flags; do
            echo "$name-epsilon$epsilon-seed$seed $epsilon --epsilon $epsilon --step-size $step_size --num-steps 4" \
                "--dataset digits --student wrn-10-1 --lr 0.1 --warmup-factor 0.2 --decay-epochs 4/5,37/40" \
                "--batch-size 32 --momentum 0.9 --weight-decay 2e-4 --val-size 137 --seed $seed $flags"
        done <<'EOF'
natural --method natural
at --method at
trades6 --method trades --beta 6
lbgat0 --method lbgat --beta 0 --guide wrn-10-1
lbgat6 --method lbgat --beta 6 --guide wrn-10-1
ikl --method ikl
EOF
    done
done | runs

exec "$PYTHON" -m results.study "Logs/$STUDY" --out "results/$STUDY"
