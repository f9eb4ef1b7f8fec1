#!/usr/bin/env bash
# AT (Madry et al., ICLR 2018): CIFAR-10, WRN-34-10; settings of TRADES' training program, at epsilon 0.031.
# 76 epochs, as published; the decays at 90 and 100 take effect with --epochs 100.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method at --student wrn-34-10 \
    --epochs 76 --lr 0.1 --warmup-factor 1 --decay-epochs 75,90,100 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark at-cifar10-wrn34-10 "$@"
