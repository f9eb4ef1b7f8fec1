#!/usr/bin/env bash
# SCORE (Pang et al., ICML 2022): CIFAR-100, WRN-28-10; settings of the authors' training program.
# The published figures are with extra images: --extra-data FILE.npz --extra-fraction 0.7.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar100 --method score --beta 4 --clip-value 0 --student wrn-28-10-swish \
    --epochs 400 --lr 0.2 --schedule onecycle-epochs --onecycle-up 0.025 \
    --batch-size 512 --momentum 0.9 --weight-decay 5e-4 --nesterov --no-norm-decay \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --average-every step --average-tau 0.995 --average-warmup 0.025 --average-ramp \
    --val-size 1024 --eval-size 1024 \
    --mark score4-cifar100-wrn28-10-swish "$@"
