#!/usr/bin/env bash
# MART6 (Wang et al., ICLR 2020): CIFAR-100, WRN-34-10; settings of the authors' training program.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar100 --method mart --beta 6 --student wrn-34-10 \
    --epochs 90 --lr 0.1 --warmup-factor 1 --decay-epochs 75,90 \
    --batch-size 128 --momentum 0.9 --weight-decay 7e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark mart6-cifar100-wrn34-10 "$@"
