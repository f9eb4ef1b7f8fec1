#!/usr/bin/env bash
# Free-AT (Shafahi et al., NeurIPS 2019): CIFAR-10, WRN-34-10; settings of the authors' training program.
# 80,000 updates are 25.6 epochs, here 26. The network is what that program calls WRN-32-10; there
# it standardises each image by itself, has a leaky ReLU (0.1), and its last layer's bias does not decay.
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
launch train_lbgat.py \
    --dataset cifar10 --method free --replays 8 --clip-image 1 --student wrn-34-10 \
    --epochs 26 --lr 0.1 --warmup-factor 1 --decay-epochs 1/2,3/4 \
    --batch-size 128 --momentum 0.9 --weight-decay 2e-4 --no-norm-decay \
    --norm linf --epsilon 8/255 --step-size 8/255 --num-steps 1 \
    --mark free-cifar10-wrn34-10 "$@"
