#!/usr/bin/env bash
# MART (Wang et al., ICLR 2020): CIFAR-10, WRN-34-10. Settings: the authors' published training program.
# Published: no AutoAttack figure of this method, network and data set is in results/published.csv.
# Cost: 346 GFLOP per image; in bf16 on one H100 an estimated 1.2 hours (at the 369 TFLOP/s measured for an LBGAT6 step of WRN-34-10).
# Further flags are passed on and win: train_mart6_cifar10.sh --seed 2 --mark mart6-cifar10-wrn34-10-seed2

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
exec "$PYTHON" train_lbgat.py \
    --dataset cifar10 --method mart --beta 6 --student wrn-34-10 \
    --epochs 90 --lr 0.1 --warmup-factor 1 --decay-epochs 75,90 \
    --batch-size 128 --momentum 0.9 --weight-decay 7e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark mart6-cifar10-wrn34-10 "$@"
