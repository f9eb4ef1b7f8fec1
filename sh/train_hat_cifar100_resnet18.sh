#!/usr/bin/env bash
# HAT (Rade and Moosavi-Dezfooli, ICLR 2022): CIFAR-100, ResNet-18; the authors' settings of CIFAR-10.
# Its helper is trained before by sh/train_natural_cifar100_resnet18.sh.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar100 --method hat --beta 2.5 --gamma 0.5 --h 2 --student resnet18 \
    --guide resnet18 --guide-checkpoint checkpoints/natural-cifar100-resnet18/last.pt \
    --epochs 50 --lr 0.21 --schedule onecycle-updates --onecycle-up 0.25 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 --nesterov \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --mark hat-cifar100-resnet18 "$@"
