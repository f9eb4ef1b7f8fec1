#!/usr/bin/env bash
# MART5 (Wang et al., ICLR 2020): CIFAR-100, ResNet-18; settings of the authors' training program.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar100 --method mart --beta 5 --student resnet18 \
    --epochs 120 --lr 0.01 --warmup-factor 1 --decay-epochs 75,90,100 \
    --batch-size 128 --momentum 0.9 --weight-decay 3.5e-3 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark mart5-cifar100-resnet18 "$@"
