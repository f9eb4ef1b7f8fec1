#!/usr/bin/env bash
# LBGAT-AWP (figures: LBGAT's README): CIFAR-10, WRN-34-10. Settings: a RECONSTRUCTION.
# Published: no AutoAttack figure of this method, network and data set is in results/published.csv.
# Cost: 450 GFLOP per image; in bf16 on one H100 an estimated 3.4 hours (at the 369 TFLOP/s measured for an LBGAT6 step of WRN-34-10).
# The authors published figures for CIFAR-100 but no training program: these are TRADES-AWP's settings, put to
# LBGAT6. The guide is not perturbed.
# Further flags are passed on and win: train_lbgat_awp_cifar10.sh --seed 2 --mark lbgat-awp-reconstruction-cifar10-wrn34-10-seed2

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
exec "$PYTHON" train_lbgat.py \
    --dataset cifar10 --method lbgat --beta 6 --student wrn-34-10 --guide resnet18-guide \
    --epochs 200 --lr 0.1 --warmup-factor 1 --decay-epochs 100,150 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --awp-gamma 0.005 --awp-start-epoch 10 \
    --mark lbgat-awp-reconstruction-cifar10-wrn34-10 "$@"
