#!/usr/bin/env bash
# Backward smoothing (Chen et al., AAAI 2022): CIFAR-10, ResNet-18; settings of the authors' training program.
# The program chooses the best epoch by PGD-20 on its first 2,560 test images; so does this.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method backward-smoothing --beta 10 --gamma 1 --student resnet18 \
    --epochs 100 --lr 0.1 --warmup-factor 1 --decay-epochs 51,76 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 0.031 --step-size 0.031 --num-steps 1 \
    --normalize cifar10 --eval-size 2560 \
    --mark bs10-cifar10-resnet18 "$@"
