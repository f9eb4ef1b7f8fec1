#!/usr/bin/env bash
# Sitawarin2020 (Sitawarin et al., 2020): CIFAR-100, WRN-34-10; RECONSTRUCTION.
# The program's settings are those of ResNet-18: the gap schedule of the published network is not in it.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar100 --method ates --student wrn-34-10 \
    --gap 0 --final-gap 0.4 --gap-from 30 --gap-to 70 \
    --epochs 100 --lr 0.05 --warmup-factor 1 --decay-epochs 41,61,81 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --val-size 5000 --eval-size 5000 \
    --mark ates-reconstruction-cifar100-wrn34-10 "$@"
