#!/usr/bin/env bash
# ATES (Sitawarin et al., 2020): CIFAR-10, ResNet-18; settings of the authors' training program.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method ates --student resnet18 \
    --gap 0 --final-gap 0.4 --gap-from 30 --gap-to 70 \
    --epochs 100 --lr 0.05 --warmup-factor 1 --decay-epochs 41,61,81 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --val-size 5000 --eval-size 5000 \
    --mark ates-cifar10-resnet18 "$@"
