#!/usr/bin/env bash
# Train a small LBGAT student and its guide on real handwritten digits (16x16, shipped with scikit-learn), attack the
# student with the standard AutoAttack, and draw curves and adversarial examples.
# Further flags go to the training: quickstart.sh --method natural --mark quickstart-natural trains without an attack.

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # more threads slow tiny networks down
case " $* " in
    *" --method"*) ;;  # another method has other parameters
    *) set -- --method lbgat --beta 2 "$@" ;;
esac
set -- \
    --dataset digits --student wrn-10-1 --guide wrn-10-1 \
    --epochs 40 --lr 0.1 --warmup-factor 0.2 --decay-epochs 32,37 \
    --batch-size 32 --momentum 0.9 --weight-decay 2e-4 \
    --norm linf --epsilon 0.1 --step-size 0.04 --num-steps 4 \
    --val-size 137 --save-freq 40 --mark quickstart "$@"
"$PYTHON" train_lbgat.py "$@"

# The evaluation uses the training's epsilon, norm, device and folders.
{ read -r logs; read -r checkpoint; read -r epsilon; read -r norm; read -r device; } < <("$PYTHON" - "$@" <<'EOF'
import sys
from engine.command_line import parse_train
c = parse_train(sys.argv[1:])
print(f"{c.log_dir}/{c.run_name}", f"{c.checkpoint_dir}/{c.run_name}/last.pt", c.epsilon, c.norm, c.device, sep="\n")
EOF
)
echo "curves: $logs/curves.png"
echo "attacking $checkpoint with AutoAttack"
exec "$PYTHON" eval_autoattack.py --checkpoint "$checkpoint" --epsilon "$epsilon" --norm "$norm" --device "$device" \
    --n-examples 100 --log-dir "$(dirname "$logs")" --mark "$(basename "$logs")"
