#!/usr/bin/env bash
# AT-AWP (Wu et al., NeurIPS 2020): CIFAR-100, WRN-34-10. Settings: the authors' published training program.
# Published: 60.38 clean, 28.86 under AutoAttack at epsilon 8/255 (Wu et al. 2020 and RobustBench).
# Cost: 346 GFLOP per image; in bf16 on one H100 an estimated 2.6 hours (at the 369 TFLOP/s measured for an LBGAT6 step of WRN-34-10).
# Further flags are passed on and win: train_at_awp_cifar100.sh --seed 2 --mark at-awp-cifar100-wrn34-10-seed2

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
exec "$PYTHON" train_lbgat.py \
    --dataset cifar100 --method at --student wrn-34-10 \
    --epochs 200 --lr 0.1 --warmup-factor 1 --decay-epochs 100,150 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --awp-gamma 0.01 --awp-start-epoch 1 \
    --mark at-awp-cifar100-wrn34-10 "$@"
