#!/usr/bin/env bash
# FGSM-RS (Wong et al., ICLR 2020): CIFAR-100, PreActResNet-18; settings of the authors' training program.
# --stop-overfitting --save-freq 1 adds the program's --early-stop, which is off by default there too.
# That program trains in half precision; --precision bf16 comes near it.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar100 --method fgsm-rs --student preactresnet18 \
    --epochs 15 --lr 0.2 --schedule cyclic \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 10/255 --num-steps 1 \
    --mark fgsm-rs-cifar100-preactresnet18 "$@"
