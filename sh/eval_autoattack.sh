#!/usr/bin/env bash
# The standard AutoAttack on a checkpoint: eval_autoattack.sh --checkpoint FILE [--epsilon 8/255 ...].
# Without arguments: on a small robust network that ships in checkpoints/, of CIFAR-100 where its images are in data/,
# else of the handwritten digits that come with scikit-learn.

if [ $# -gt 0 ]; then
    . "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
else
    . "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements-dev.txt
    if [ -e data/cifar100.npz ] || [ -e data/cifar-100-python ]; then
        set -- --checkpoint checkpoints/lbgat6-short-cifar100-wrn16-2.pt --epsilon 0.031 --n-examples 200
    else
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # a tiny network: threads would wait for each other
        set -- --checkpoint checkpoints/quickstart-digits.pt --epsilon 0.1 --n-examples 100 --cross-checks 100
    fi
fi
exec "$PYTHON" eval_autoattack.py "$@"
