#!/usr/bin/env bash
# FAT-Zhang2020 (Zhang et al., ICML 2020): CIFAR-10, WRN-34-10; settings of the authors' training program.
# FAT for TRADES, trained at 0.062; the published figures are at 8/255.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method fat-trades --beta 6 --student wrn-34-10 \
    --epochs 85 --lr 0.1 --warmup-factor 1 --decay-epochs 75,90 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.062 --step-size 0.007 --num-steps 10 \
    --mark fat-trades6-cifar10-wrn34-10 "$@"
