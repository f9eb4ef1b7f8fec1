#!/usr/bin/env bash
# LBGAT0 (Cui et al., ICCV 2021): CIFAR-100, WRN-34-10; settings of the authors' training program.
# The published weights are from epoch 91 or 92, just after the second decay: --save-freq 13 saves epoch 91.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar100 --method lbgat --beta 0 --student wrn-34-10 --guide resnet18-guide \
    --epochs 100 --lr 0.1 --warmup-factor 0.2 --decay-epochs 76,91 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --save-freq 13 --mark lbgat0-cifar100-wrn34-10 "$@"
