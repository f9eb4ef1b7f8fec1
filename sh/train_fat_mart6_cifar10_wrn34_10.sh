#!/usr/bin/env bash
# FAT for MART (Zhang et al., ICML 2020): CIFAR-10, WRN-34-10; settings of the authors' training program.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method fat-mart --beta 6 --student wrn-34-10 \
    --epochs 90 --lr 0.1 --warmup-factor 1 --decay-epochs 60,90 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark fat-mart6-cifar10-wrn34-10 "$@"
