#!/usr/bin/env bash
# Run the standard AutoAttack on a checkpoint: eval_autoattack.sh --checkpoint FILE [--epsilon 8/255 ...].
# Without arguments: on a small robust network in checkpoints/, on CIFAR-100 if its images are in data/, otherwise on the
# handwritten digits of scikit-learn.

if [ $# -gt 0 ]; then
    . "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
else
    . "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements-dev.txt
    if [ -e data/cifar100.npz ] || [ -e data/cifar-100-python ]; then
        set -- --checkpoint checkpoints/lbgat6-short-cifar100-wrn16-2.pt --epsilon 0.031 --n-examples 200
    else
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # more threads slow a tiny network down
        set -- --checkpoint checkpoints/quickstart-digits.pt --epsilon 0.1 --n-examples 100 --cross-checks 100
    fi
fi
launch eval_autoattack.py "$@"
