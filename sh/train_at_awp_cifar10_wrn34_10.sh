#!/usr/bin/env bash
# AT-AWP (Wu et al., NeurIPS 2020): CIFAR-10, WRN-34-10; settings of the authors' training program.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method at --student wrn-34-10 \
    --epochs 200 --lr 0.1 --warmup-factor 1 --decay-epochs 100,150 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --awp-gamma 0.01 --awp-start-epoch 1 \
    --mark at-awp-cifar10-wrn34-10 "$@"
