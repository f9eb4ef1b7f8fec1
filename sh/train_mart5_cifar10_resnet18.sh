#!/usr/bin/env bash
# MART (Wang et al., ICLR 2020): CIFAR-10, ResNet-18. Settings: the authors' published training program.
# Published: no AutoAttack figure of this method, network and data set is in results/published.csv.
# Cost: 29 GFLOP per image; in bf16 on one H100 an estimated 0.2 hours (at the 213 TFLOP/s measured for an LBGAT6 step of ResNet-18).
# Further flags are passed on and win: train_mart5_cifar10_resnet18.sh --seed 2 --mark mart5-cifar10-resnet18-seed2

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
exec "$PYTHON" train_lbgat.py \
    --dataset cifar10 --method mart --beta 5 --student resnet18 \
    --epochs 120 --lr 0.01 --warmup-factor 1 --decay-epochs 75,90,100 \
    --batch-size 128 --momentum 0.9 --weight-decay 3.5e-3 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark mart5-cifar10-resnet18 "$@"
