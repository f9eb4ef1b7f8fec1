#!/usr/bin/env bash
# Gowal2020 (Gowal et al., 2020): CIFAR-10, WRN-70-16; settings of its PyTorch port.
# The PyTorch form of the method; the published network is of the original in JAX.
# Extra images: --extra-data FILE.npz --extra-fraction 0.7.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method wa-trades --beta 6 --student wrn-70-16-swish \
    --label-smoothing 0.1 \
    --epochs 400 --lr 0.4 --schedule onecycle-epochs --onecycle-up 0.025 \
    --batch-size 1024 --momentum 0.9 --weight-decay 5e-4 --nesterov --no-norm-decay \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --average-every step --average-tau 0.995 --average-warmup 0.025 --average-ramp \
    --val-size 1024 --eval-size 1024 \
    --mark wa-trades6-cifar10-wrn70-16-swish "$@"
