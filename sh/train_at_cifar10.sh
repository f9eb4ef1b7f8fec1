#!/usr/bin/env bash
# AT (Madry et al., ICLR 2018): CIFAR-10, WRN-34-10. Settings: the authors' published training program.
# Published: 87.14 clean, 44.04 under AutoAttack at epsilon 8/255 (Madry et al. 2018 as listed by LBGAT).
# Cost: 306 GFLOP per image; in bf16 on one H100 an estimated 0.9 hours (at the 369 TFLOP/s measured for an LBGAT6 step of WRN-34-10).
# 76 epochs; the decays at 90 and 100 take effect with --epochs 100.
# Further flags are passed on and win: train_at_cifar10.sh --seed 2 --mark at-cifar10-wrn34-10-seed2

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
exec "$PYTHON" train_lbgat.py \
    --dataset cifar10 --method at --student wrn-34-10 \
    --epochs 76 --lr 0.1 --warmup-factor 1 --decay-epochs 75,90,100 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 10 \
    --mark at-cifar10-wrn34-10 "$@"
