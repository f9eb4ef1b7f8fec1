#!/usr/bin/env bash
# The standard AutoAttack on a checkpoint: eval_autoattack.sh --checkpoint FILE [--epsilon 8/255 ...].
# Without arguments: on what quickstart.sh trained.

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
if [ $# -eq 0 ]; then
    checkpoint=checkpoints/quickstart/last.pt
    [ -e $checkpoint ] || _fail "nothing to evaluate yet: run sh/quickstart.sh first, or pass --checkpoint FILE"
    set -- --checkpoint $checkpoint --epsilon 0.1
fi
exec "$PYTHON" eval_autoattack.py "$@"
