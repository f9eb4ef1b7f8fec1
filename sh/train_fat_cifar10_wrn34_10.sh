#!/usr/bin/env bash
# FAT (Zhang et al., ICML 2020): CIFAR-10, WRN-34-10; settings of the authors' training program.
# The network is what that program calls WRN-32-10.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method fat --student wrn-34-10 \
    --epochs 120 --lr 0.1 --warmup-factor 1 --decay-epochs 60,90,110 --decay-factors 0.1,0.1,0.5 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark fat-cifar10-wrn34-10 "$@"
