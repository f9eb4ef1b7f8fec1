#!/usr/bin/env bash
# TRADES6 in 30 epochs (Zhang et al., ICML 2019): CIFAR-100, WRN-34-10; LBGAT's decays, shortened to 30 epochs.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar100 --method trades --beta 6 --student wrn-34-10 \
    --epochs 30 --lr 0.1 --warmup-factor 1 --decay-epochs 23,28 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark trades6-short-cifar100-wrn34-10 "$@"
