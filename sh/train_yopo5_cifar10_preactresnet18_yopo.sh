#!/usr/bin/env bash
# YOPO (Zhang et al., NeurIPS 2019): CIFAR-10, PreActResNet-18-YOPO; settings of the authors' training program.
# YOPO-5-3. The program trains one epoch more than its setting of 36.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method yopo --full-passes 5 --wide 0 --student preactresnet18-yopo \
    --epochs 37 --lr 0.04 --warmup-factor 1 --decay-epochs 31,35,37 \
    --batch-size 256 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 3 \
    --mark yopo5-cifar10-preactresnet18-yopo "$@"
