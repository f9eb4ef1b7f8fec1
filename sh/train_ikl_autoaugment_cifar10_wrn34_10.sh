#!/usr/bin/env bash
# IKL-AT + AutoAugment (Cui et al., NeurIPS 2024): CIFAR-10, WRN-34-10; settings of the authors' training program.
# Each image is trained on twice: plain, and augmented (CIFAR-10 policy) with a loss of weight 0.3.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method ikl --student wrn-34-10 \
    --alpha 4 --beta 20 --temperature 4 --attack-beta 0 \
    --epochs 200 --lr 0.2 --schedule cosine \
    --batch-size 128 --momentum 0.9 --weight-decay 5e-4 \
    --norm linf --epsilon 8/255 --epsilon-ramp linear --step-ratio 0.5 --num-steps 5 \
    --awp-gamma 0.005 --awp-start-epoch 10 \
    --average-every epoch --average-tau 0.9 \
    --augment autoaugment --augment-view-weight 0.3 \
    --mark ikl-autoaugment-cifar10-wrn34-10 "$@"
