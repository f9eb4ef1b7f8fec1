#!/usr/bin/env bash
# Rice2020 (Rice et al., ICML 2020): CIFAR-10, PreActResNet-18; settings of the authors' training program.
# Early stopping is best.pt, chosen by PGD-20 on 1,000 of the training images, which are held out. The published figures are
# of all 50,000, chosen on the test set by PGD-10: --val-size 0 --eval-size 10000.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method rice --student preactresnet18 \
    --epochs 200 --lr 0.1 --schedule piecewise --decay-epochs 101,151 \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --step-size 2/255 --num-steps 10 \
    --crop-padding reflect --normalize cifar10 --val-size 1000 \
    --mark rice-cifar10-preactresnet18 "$@"
