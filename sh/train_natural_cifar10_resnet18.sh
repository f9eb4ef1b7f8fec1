#!/usr/bin/env bash
# Natural training (helper of HAT, Rade and Moosavi-Dezfooli, ICLR 2022): CIFAR-10, ResNet-18; settings of the authors' training program.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method natural --student resnet18 \
    --epochs 50 --lr 0.21 --schedule onecycle-updates --onecycle-up 0.25 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 --nesterov \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --mark natural-cifar10-resnet18 "$@"
