#!/usr/bin/env bash
# LBGAT-AWP* (figures of LBGAT's README): CIFAR-10, WRN-34-10; a RECONSTRUCTION of the settings.
# The authors published figures for CIFAR-100 but no training program: beta, schedule, epsilon ramp and averaging
# are inferred, and the attack is that of IKL-AT. The guide is not perturbed.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method lbgat --beta 9 --student wrn-34-10 --guide resnet18-guide \
    --epochs 200 --lr 0.2 --schedule cosine \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --epsilon-ramp linear --step-ratio 0.5 --num-steps 5 \
    --awp-gamma 0.005 --awp-start-epoch 10 \
    --average-every epoch --average-tau 0.9 \
    --mark lbgat-awp-star-reconstruction-cifar10-wrn34-10 "$@"
