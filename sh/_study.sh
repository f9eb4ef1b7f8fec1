# Sourced by the studies: `. sh/_study.sh NAME EPOCHS N_EXAMPLES`. Then `runs` reads lines "MARK EPSILONS FLAGS..." and, some
# at a time, trains each with these flags and attacks its last epoch at each epsilon of the list. A rerun resumes.

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" STUDY=${STUDY:-$1} EPOCHS=${EPOCHS:-$2} N_EXAMPLES=${N_EXAMPLES:-$3}

run() {
    local mark=$1 epsilons=$2 epsilon folder=Logs/$STUDY/$1
    shift 2
    "$PYTHON" train_lbgat.py --epochs "$EPOCHS" --norm linf --save-freq 1000 "$@" \
        --log-dir "Logs/$STUDY" --checkpoint-dir "checkpoints/$STUDY" --mark "$mark" >/dev/null 2>&1 ||
        { echo "error: $mark failed: see $folder/train.log" >&2; return 255; }
    [ -s "$folder/pgd20.json" ] || "$PYTHON" -m results.pgd20 "checkpoints/$STUDY/$mark/last.pt" --epsilons "$epsilons" \
        --out "$folder/pgd20.json"
    for epsilon in ${epsilons//,/ }; do
        [ -s "$folder/epsilon${epsilon/\//of}/autoattack.json" ] && continue
        "$PYTHON" eval_autoattack.py --checkpoint "checkpoints/$STUDY/$mark/last.pt" --epsilon "$epsilon" \
            --n-examples "$N_EXAMPLES" --log-dir "$folder" --mark "epsilon${epsilon/\//of}" 2>/dev/null |
            tail -n 1 | sed "s|^|$mark  |" ||
            { echo "error: the evaluation of $mark failed: see $folder/epsilon${epsilon/\//of}/" >&2; return 255; }
    done
}
export -f run

runs() { xargs -P "${PROCESSES:-2}" -L 1 bash -o pipefail -c 'run "$@"' run; }
