#!/usr/bin/env bash
# LBGAT0 (Cui et al., ICCV 2021): CIFAR-10, WRN-34-10. Settings: the authors' published training program.
# Published: 88.22 clean, 52.86 under AutoAttack at epsilon 0.031 (LBGAT, ICCV 2021, and RobustBench).
# Cost: 344 GFLOP per image; in bf16 on one H100 an estimated 1.3 hours (at the 369 TFLOP/s measured for an LBGAT6 step of WRN-34-10).
# The published weights are of epoch 91 or 92, just after the second decay: student-epoch091.pt is kept for that.
# Further flags are passed on and win: train_lbgat0_cifar10.sh --seed 2 --mark lbgat0-cifar10-wrn34-10-seed2

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
exec "$PYTHON" train_lbgat.py \
    --dataset cifar10 --method lbgat --beta 0 --student wrn-34-10 --guide resnet18-guide \
    --epochs 100 --lr 0.1 --warmup-factor 0.2 --decay-epochs 76,91 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --save-freq 13 --mark lbgat0-cifar10-wrn34-10 "$@"
