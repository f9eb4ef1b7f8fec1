#!/usr/bin/env bash
# TRADES6 (Zhang et al., ICML 2019): CIFAR-10, WRN-34-10. Settings: the authors' published training program.
# Published: 84.92 clean, 52.64 under AutoAttack at epsilon 0.031 (Zhang et al. 2019 as listed by LBGAT).
# Cost: 373 GFLOP per image; in bf16 on one H100 an estimated 1.1 hours (at the 369 TFLOP/s measured for an LBGAT6 step of WRN-34-10).
# 76 epochs; the decays at 90 and 100 take effect with --epochs 100.
# Further flags are passed on and win: train_trades6_cifar10.sh --seed 2 --mark trades6-cifar10-wrn34-10-seed2

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
exec "$PYTHON" train_lbgat.py \
    --dataset cifar10 --method trades --beta 6 --student wrn-34-10 \
    --epochs 76 --lr 0.1 --warmup-factor 1 --decay-epochs 75,90,100 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark trades6-cifar10-wrn34-10 "$@"
