#!/usr/bin/env bash
# Free-AT (Shafahi et al., NeurIPS 2019): CIFAR-10, PreActResNet-18; settings of the training program of Wong et al. 2020.
# That program trains in half precision; --precision bf16 comes near it.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method free --replays 8 --clip-image 0 --student preactresnet18 \
    --epochs 10 --lr 0.04 --schedule cyclic \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 8/255 --num-steps 1 \
    --mark free-cifar10-preactresnet18 "$@"
