#!/usr/bin/env bash
# Does LBGAT keep more clean accuracy than TRADES? On CIFAR-100 with networks that can hold it, on one GPU, in pieces:
#     bash sh/study_gpu.sh MINUTES
# Trains and attacks in the order below until the minutes are over, writes tables of what is finished to results/study-gpu-*
# and prints what comes next; the same command goes on there. Weights are in checkpoints/study-gpu-*. Trained in bf16;
# standard AutoAttack at 0.031 on the last epoch; 1,000 training images are held out and only watched.
# SMALL=1 runs all pieces on digits with tiny sizes, also on a CPU; its tables are in Logs/.

minutes=${1:-}
case $minutes in '' | *[!0-9]*) minutes=0 ;; esac
minutes=$((10#$minutes))
[ "$minutes" -ge 4 ] || { echo "error: say for how many minutes, at least 4: bash sh/study_gpu.sh 30" >&2; exit 2; }
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements-dev.txt
deadline=$((60 * minutes - 30))  # of SECONDS, which count from the start; the tables take some
results=${SMALL:+Logs/small-}results study=
mkdir -p Logs

left() { echo $((deadline - SECONDS)); }

tables() {
    [ -n "$study" ] && compgen -G "Logs/$study/*/*/autoattack.json" >/dev/null || return 0
    "$PYTHON" -m results.study "Logs/$study" --out "$results/$study"
}

stop() { # WHAT [STATUS]: write this study's tables, say what comes next, and end
    tables || true
    echo "next: $1; run the same command again"
    exit "${2:-0}"
}

need() { # SECONDS WHAT
    [ "$(left)" -ge "$1" ] || stop "$2"
}

train() { # MARK FLAGS...
    local what="training of $study/$1" log=Logs/$study/$1/train.log errors=Logs/$study-errors.txt mark=$1
    shift
    ! grep -qs 'finished: ' "$log" || return 0
    need 60 "$what"
    "$PYTHON" train_lbgat.py "${common[@]}" "$@" --epochs "$epochs" --save-freq 1000 --mark "$mark" \
        --log-dir "Logs/$study" --checkpoint-dir "checkpoints/$study" \
        --max-minutes "$(awk "BEGIN { print ($(left) - 20) / 60 }")" >/dev/null 2>"$errors" ||
        stop "$what, which failed: $(tail -n 1 "$errors")" 1
    tail -n 2 "$log"
    grep -q 'finished: ' "$log" || stop "$what"
}

attack() { # MARK IMAGES
    local folder=Logs/$study/$1 last=checkpoints/$study/$1/last.pt errors=Logs/$study-errors.txt status=0
    if [ ! -s "$folder/pgd20.json" ]; then
        need 60 "PGD-20 on $study/$1"
        "$PYTHON" -m results.pgd20 "$last" --epsilons "$epsilon" --out "$folder/pgd20.json" 2>"$errors" ||
            stop "PGD-20 on $study/$1, which failed: $(tail -n 1 "$errors")" 1
    fi
    [ ! -s "$folder/epsilon$epsilon/autoattack.json" ] || return 0
    need 60 "AutoAttack on $study/$1"
    timeout -s TERM "$(left)" "$PYTHON" eval_autoattack.py --checkpoint "$last" --epsilon "$epsilon" \
        --n-examples "$2" --log-dir "$folder" --mark "epsilon$epsilon" 2>"$errors" | tail -n 1 || status=$?
    [ "$status" != 124 ] || stop "AutoAttack on $study/$1"
    [ "$status" = 0 ] || stop "AutoAttack on $study/$1, which failed: $(tail -n 1 "$errors")" 1
}

benchmark() { # NAME SECONDS MODULE ARGUMENTS...: what fails is tried again by the next call
    local out=$results/study-gpu-speed name=$1 seconds=$2 status=0
    shift 2
    [ ! -e "$out/$name.txt" ] || return 0
    need "$seconds" "$name"
    mkdir -p "$out"
    timeout "$(left)" "$PYTHON" -m "$@" >"Logs/$name.txt" 2>&1 || status=$?
    [ "$status" != 124 ] || stop "$name"
    [ "$status" = 0 ] || { echo "$name failed: see Logs/$name.txt"; return 0; }
    mv "Logs/$name.txt" "$out/"
    tail -n 2 "$out/$name.txt"
}

common=(--norm linf --lr 0.1 --warmup-factor 0.2 --decay-epochs 23/30,28/30 --momentum 0.9 --weight-decay 2e-4)
if [ -n "${SMALL:-}" ]; then
    epochs=2 images=8 large_images=4 sets="digits digits" small=wrn-10-1 large=wrn-10-2 guide=wrn-10-1 seconds=20
    epsilon=0.1 step=(--student wrn-10-1 --batch-size 8 --repeats 1 --device cpu)
    common+=(--epsilon 0.1 --step-size 0.04 --num-steps 2 --batch-size 64 --val-size 137 --limit-train 265)
else
    epochs=30 images=1000 large_images=500 sets="cifar100 cifar10" small=resnet18 large=wrn-34-10 guide=resnet18-guide
    epsilon=0.031 seconds=150 step=(--student wrn-34-10 --guide resnet18-guide --batch-size 128 --precision bf16 --repeats 3)
    common+=(--epsilon 0.031 --step-size 0.007 --num-steps 10 --batch-size 128 --val-size 1000 --precision bf16)
fi
read -r first second <<<"$sets"

"$PYTHON" -c 'import pytest' 2>/dev/null && benchmark cuda-tests "$seconds" pytest -q -k cuda -rs tests/engine tests/evaluation
benchmark "train-step-$large" "$seconds" benchmarks.train_step "${step[@]}" --json "$results/study-gpu-speed/train-step.json"

methods=("lbgat0 --method lbgat --beta 0 --guide $guide" "trades6 --method trades --beta 6" "at --method at"
    "lbgat6 --method lbgat --beta 6 --guide $guide")

both() { # STUDY DATASET STUDENT IMAGES NUMBER_OF_METHODS: first all trainings, then equally many images for each
    study=$1
    local line name flags
    for line in "${methods[@]:0:$5}"; do
        read -r name flags <<<"$line"
        train "$name-seed1" --dataset "$2" --student "$3" $flags
    done
    for line in "${methods[@]:0:$5}"; do
        attack "${line%% *}-seed1" "$4"
    done
    tables
}

both "study-gpu-$small" "$first" "$small" "$images" 4
benchmark "autoattack-$small" "$seconds" benchmarks.autoattack --n "$large_images" --dataset "$first" \
    --checkpoint "checkpoints/study-gpu-$small/lbgat0-seed1/last.pt" --epsilon "$epsilon" --out "$results/study-gpu-speed"
both "study-gpu-$large" "$first" "$large" "$large_images" 2
both "study-gpu-$small-$second" "$second" "$small" "$images" 4
echo "finished: every piece is in $results/study-gpu-*"
