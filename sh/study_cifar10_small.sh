#!/usr/bin/env bash
# Natural training, AT, TRADES6, LBGAT0 and LBGAT6 on CIFAR-10 with a small student: equal images and epochs, two seeds, a
# guide of the student's size and, once, a larger one. The last epoch is measured: PGD-20 on all test images, standard
# AutoAttack on 500, at 0.031 and 8/255; 1,000 training images are held out and only watched. A rerun resumes. On two cores
# at 80 images/s a thread it takes about eight hours.

. "$(dirname "${BASH_SOURCE[0]}")/_study.sh" study-cifar10-small 8 500

student=${STUDENT:-wrn-10-1}
for seed in ${SEEDS:-1 2}; do
    lines=(
        "natural --method natural"
        "trades6 --method trades --beta 6"
        "lbgat0 --method lbgat --beta 0 --guide $student"
        "lbgat6 --method lbgat --beta 6 --guide $student"
        "at --method at"
    )
    [ "$seed" != 1 ] || lines+=("lbgat0large --method lbgat --beta 0 --guide wrn-16-2")
    for line in "${lines[@]}"; do
        read -r name flags <<<"$line"
        echo "$name-seed$seed 0.031,8/255 --epsilon 0.031 --step-size 0.007 --num-steps 10 --dataset cifar10" \
            "--student $student --limit-train ${IMAGES:-50000} --val-size 1000 --schedule onecycle --lr 0.2" \
            "--batch-size 128 --momentum 0.9 --weight-decay 5e-4 --seed $seed $flags"
    done
done | runs

exec "$PYTHON" -m results.study "Logs/$STUDY" --out "results/$STUDY"
