#!/usr/bin/env bash
# LBGAT-AWP* (figures: LBGAT's README): CIFAR-100, WRN-34-10. Settings: a RECONSTRUCTION.
# Published: 62.99 clean, 31.20 under AutoAttack at epsilon 8/255 (LBGAT README and RobustBench).
# Cost: 317 GFLOP per image; in bf16 on one H100 an estimated 2.4 hours (at the 369 TFLOP/s measured for an LBGAT6 step of WRN-34-10).
# The authors published figures for CIFAR-100 but no training program: beta, schedule, epsilon ramp and averaging
# are inferred, the attack's steps are IKL-AT's. The guide is not perturbed.
# Further flags are passed on and win: train_lbgat_awp_star_cifar100.sh --seed 2 --mark lbgat-awp-star-reconstruction-cifar100-wrn34-10-seed2

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
exec "$PYTHON" train_lbgat.py \
    --dataset cifar100 --method lbgat --beta 9 --student wrn-34-10 --guide resnet18-guide \
    --epochs 200 --lr 0.2 --schedule cosine \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --epsilon-ramp linear --step-ratio 0.5 --num-steps 5 \
    --awp-gamma 0.005 --awp-start-epoch 10 \
    --average-every epoch --average-tau 0.9 \
    --mark lbgat-awp-star-reconstruction-cifar100-wrn34-10 "$@"
