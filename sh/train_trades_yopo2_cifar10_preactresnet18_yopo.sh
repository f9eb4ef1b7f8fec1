#!/usr/bin/env bash
# TRADES-YOPO (Zhang et al., NeurIPS 2019): CIFAR-10, PreActResNet-18-YOPO; settings of the authors' training program.
# TRADES-YOPO-2-5. The program trains one epoch more than its setting of 105.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method trades-yopo --full-passes 2 --beta 1 --student preactresnet18-yopo \
    --epochs 106 --lr 0.2 --warmup-factor 1 --decay-epochs 71,91,101 \
    --batch-size 256 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 0.031 --step-size 0.007 --num-steps 5 \
    --mark trades-yopo2-cifar10-preactresnet18-yopo "$@"
