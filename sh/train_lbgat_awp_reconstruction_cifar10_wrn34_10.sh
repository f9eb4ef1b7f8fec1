#!/usr/bin/env bash
# LBGAT-AWP (figures of LBGAT's README): CIFAR-10, WRN-34-10; a RECONSTRUCTION of the settings.
# The authors published figures for CIFAR-100 but no training program: TRADES-AWP's settings with the LBGAT6 loss.
# The guide is not perturbed.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method lbgat --beta 6 --student wrn-34-10 --guide resnet18-guide \
    --epochs 200 --lr 0.1 --warmup-factor 1 --decay-epochs 100,150 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --awp-gamma 0.005 --awp-start-epoch 10 \
    --mark lbgat-awp-reconstruction-cifar10-wrn34-10 "$@"
