#!/usr/bin/env bash
# GKL-AT (Cui et al., 2025): CIFAR-10, WRN-34-10; settings of the authors' training program.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method gkl --student wrn-34-10 \
    --alpha 4 --beta 20 --gamma 0.2 --temperature 1 --attack-beta 0 \
    --epochs 200 --lr 0.2 --schedule cosine \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --epsilon-ramp linear --step-ratio 0.5 --num-steps 5 \
    --awp-gamma 0.005 --awp-start-epoch 10 \
    --average-every epoch --average-tau 0.9 \
    --mark gkl-cifar10-wrn34-10 "$@"
