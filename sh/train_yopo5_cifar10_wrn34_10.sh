#!/usr/bin/env bash
# YOPO-Zhang2019a (Zhang et al., NeurIPS 2019): CIFAR-10, WRN-34-10; settings of the authors' training program.
# YOPO-5-3. The program trains one epoch more than its setting of 36. Its network has an unused group of blocks and
# PyTorch's initial weights, ours those of every WRN-34-10 here.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method yopo --full-passes 5 --wide 1 --student wrn-34-10 \
    --epochs 37 --lr 0.08 --warmup-factor 1 --decay-epochs 31,35,37 \
    --batch-size 256 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 3 \
    --mark yopo5-cifar10-wrn34-10 "$@"
