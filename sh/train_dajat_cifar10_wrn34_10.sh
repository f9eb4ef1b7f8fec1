#!/usr/bin/env bash
# DAJAT (Addepalli et al., NeurIPS 2022): CIFAR-10, WRN-34-10; settings of the authors' training program.
# AutoAugment comes after crop and flip here, before them in the program.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method dajat --beta 10 --js 3 --student wrn-34-10 \
    --epochs 200 --lr 0.2 --schedule cosine-from-lr \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --epsilon-ramp linear --step-ratio 0.5 --num-steps 5 \
    --awp-gamma 0.005 --awp-start-epoch 10 \
    --average-every step --average-tau 0.9996 --average-warmup 0.75 \
    --augment autoaugment \
    --val-size 100 \
    --mark dajat-cifar10-wrn34-10 "$@"
