# Sourced by the studies: `. sh/_study.sh NAME EPOCHS N_EXAMPLES`. Then `runs` reads lines "MARK EPSILONS FLAGS..." and, some
# at a time, trains each with these flags and attacks its last epoch at each epsilon of the list. A rerun resumes: only what
# is older than the weights is measured again. N_EXAMPLES 0 leaves it at PGD-20.

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" STUDY=${STUDY:-$1} EPOCHS=${EPOCHS:-$2} N_EXAMPLES=${N_EXAMPLES:-$3}

run() {
    local mark=$1 epsilons=$2 epsilon attack folder=Logs/$STUDY/$1 last=checkpoints/$STUDY/$1/last.pt
    local errors=Logs/$STUDY/$1-errors.txt
    shift 2
    mkdir -p "Logs/$STUDY"
    "$PYTHON" train_lbgat.py --epochs "$EPOCHS" --norm linf --save-freq 1000 "$@" --log-dir "Logs/$STUDY" \
        --checkpoint-dir "checkpoints/$STUDY" --mark "$mark" >/dev/null 2>"$errors" ||
        { failed "training of $mark" "$errors" && return 255; }
    is_there "$folder/pgd20.json" "$last" ||
        "$PYTHON" -m results.pgd20 "$last" --epsilons "$epsilons" --out "$folder/pgd20.json" 2>"$errors" ||
        { failed "PGD-20 on $mark" "$errors" && return 255; }
    [ "$N_EXAMPLES" != 0 ] || epsilons=
    for epsilon in ${epsilons//,/ }; do
        attack=epsilon${epsilon/\//of}
        is_there "$folder/$attack/autoattack.json" "$last" && continue
        "$PYTHON" eval_autoattack.py --checkpoint "$last" --epsilon "$epsilon" --n-examples "$N_EXAMPLES" \
            --log-dir "$folder" --mark "$attack" 2>"$errors" | tail -n 1 | sed "s|^|$mark  |" ||
            { failed "AutoAttack on $mark" "$errors" && return 255; }
    done
    rm -f "$errors"
}

is_there() { [ -s "$1" ] && [ ! "$2" -nt "$1" ]; }

failed() { echo "error: $1 failed: $(tail -n 1 "$2")" >&2; }

export -f run is_there failed

runs() { xargs -P "${PROCESSES:-2}" -L 1 bash -o pipefail -c 'run "$@"' run; }
