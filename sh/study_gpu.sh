#!/usr/bin/env bash
# Does LBGAT keep more clean accuracy than TRADES? On CIFAR-100 with networks that can hold it, on one GPU, in pieces:
#     bash sh/study_gpu.sh MINUTES [PIECE...]
# Goes through the pieces (tests step resnet18 autoattack wrn-34-10 cifar10, in this order; or those named) until the minutes
# are over, writes tables of what is finished to results/study-gpu-* and prints what comes next; the same command resumes
# there. Weights are in checkpoints/study-gpu-*. Trained in bf16; the last epoch is attacked by standard AutoAttack at 0.031,
# with queries in tf32 and the verdict in float32; 1,000 training images are held out and only watched.
# EPOCHS is 30 unless set, METHODS "lbgat0 trades6 at lbgat6", of WRN-34-10 the first two; the piece autoattack attacks the
# ResNet-18 of lbgat0. PROCESSES (1) trainings or attacks run at once: one alone leaves a fast GPU idle at times, and
# NVIDIA's MPS lets several compute at the same time. Seconds are then those of runs that share the GPU.
# SMALL=1 runs all pieces on digits with tiny sizes, also on a CPU; its tables are in Logs/.

minutes=${1:-}
case $minutes in '' | *[!0-9]*) minutes=0 ;; esac
minutes=$((10#$minutes))
[ "$minutes" -ge 4 ] || { echo "error: say for how many minutes, at least 4: bash sh/study_gpu.sh 30" >&2; exit 2; }
shift
pieces="tests step resnet18 autoattack wrn-34-10 cifar10"
for piece in "$@"; do
    [[ " $pieces " == *" $piece "* ]] || { echo "error: no piece $piece: choose $pieces" >&2; exit 2; }
done
pieces=${*:-$pieces} processes=${PROCESSES:-1}
[ "$processes" -ge 1 ] 2>/dev/null || { echo "error: PROCESSES=$processes must be a whole number from 1 on" >&2; exit 2; }
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements-dev.txt
deadline=$((60 * minutes - 30))  # of SECONDS, which count from the start; the tables take some
results=${SMALL:+Logs/small-}results study=
mkdir -p Logs

set -m  # each job is a process group, which ends as a whole
trap 'for job in $(jobs -pr); do kill -- "-$job" 2>/dev/null || true; done; wait; exit 143' INT TERM

left() { echo $((deadline - SECONDS)); }

tables() {
    [ -n "$study" ] && compgen -G "Logs/$study/*/*/autoattack*.npz" >/dev/null || return 0
    "$PYTHON" -m results.study "Logs/$study" --out "$results/$study"
}

stop() { # WHAT [REASON]: write this study's tables, say what comes next, and end; status 1 with a reason
    local reason=${2:-}
    wait  # each job ends in time by itself
    tables || true
    echo "next: $1${reason:+, which failed: $reason}; run the same command again"
    exit $((${#reason} > 0))
}

need() { # SECONDS WHAT
    [ "$(left)" -ge "$1" ] || stop "$2"
}

errors() { echo "Logs/$study-$1-errors.txt"; }

check() { # MARK WHAT: stop if its job has failed
    local file
    file=$(errors "$1")
    [ ! -e "$file.status" ] || stop "$2" "$(tail -n 1 "$file") (status $(cat "$file.status"))"
}

is_trained() { # MARK
    local folder=Logs/$study/$1
    grep -qs 'finished: ' "$folder/train.log" && grep -q "\"epochs\": $epochs," "$folder/config.json"
}

is_attacked() { # MARK
    local attacked=Logs/$study/$1/epsilon$epsilon/autoattack.json
    [ -s "$attacked" ] && [ ! "checkpoints/$study/$1/last.pt" -nt "$attacked" ]
}

job() { # MARK COMMAND...: run it; leave what it says, and its status if it failed
    local file status=0
    trap : INT TERM  # its command ends, and with it the job
    file=$(errors "$1")
    rm -f "$file.status"
    "${@:2}" 2>"$file" || status=$?
    case $status in 0 | 75 | 124 | 143) rm "$file" ;; *) echo "$status" >"$file.status" ;; esac
}

train() { # MARK FLAGS...
    limited "$PYTHON" train_lbgat.py "${common[@]}" "${@:2}" --epochs "$epochs" --save-freq 1000 --mark "$1" \
        --log-dir "Logs/$study" --checkpoint-dir "checkpoints/$study" \
        --max-minutes "$(awk "BEGIN { print ($(left) - 20) / 60 }")" >/dev/null || return
    tail -n 2 "Logs/$study/$1/train.log"
}

limited() { timeout --foreground -s TERM "$(($(left) > 1 ? $(left) : 1))" "$@"; }  # in the job's group

attack() { # MARK IMAGES
    local folder=Logs/$study/$1 last=checkpoints/$study/$1/last.pt
    if [ ! -s "$folder/pgd20.json" ] || [ "$last" -nt "$folder/pgd20.json" ]; then
        limited "$PYTHON" -m results.pgd20 "$last" --epsilons "$epsilon" --precision tf32 \
            --out "$folder/pgd20.json" || return
    fi
    limited "$PYTHON" eval_autoattack.py --checkpoint "$last" --epsilon "$epsilon" --precision tf32 \
        --n-examples "$2" --log-dir "$folder" --mark "epsilon$epsilon" | tail -n 1 | sed "s|^|$1  |"
}

wait_for_a_place() {
    while [ "$(jobs -pr | wc -l)" -ge "$processes" ]; do wait -n || true; done
}

benchmark() { # NAME SECONDS MODULE ARGUMENTS...: what fails is tried again by the next call
    local out=$results/study-gpu-speed name=$1 seconds=$2 status=0
    shift 2
    [ ! -e "$out/$name.txt" ] || return 0
    need "$seconds" "$name"
    mkdir -p "$out"
    limited "$PYTHON" -m "$@" >"Logs/$name.txt" 2>&1 || status=$?
    [ "$status" != 124 ] || stop "$name"
    [ "$status" = 0 ] || { echo "$name failed: see Logs/$name.txt"; return 0; }
    mv "Logs/$name.txt" "$out/"
    tail -n 2 "$out/$name.txt"
}

compare() { # STUDY DATASET STUDENT IMAGES METHOD...: first all trainings, then equally many images for each
    study=$1
    local dataset=$2 student=$3 images=$4 name flags
    shift 4
    for name in "$@"; do
        case $name in
            lbgat*) flags="--method lbgat --beta ${name#lbgat} --guide $guide" ;;
            trades*) flags="--method trades --beta ${name#trades}" ;;
            *) flags="--method $name" ;;
        esac
        ! is_trained "$name-seed1" || continue
        wait_for_a_place
        need 60 "training of $study/$name-seed1"
        job "$name-seed1" train "$name-seed1" --dataset "$dataset" --student "$student" $flags &
    done
    wait
    for name in "$@"; do
        check "$name-seed1" "training of $study/$name-seed1"
        is_trained "$name-seed1" || stop "training of $study/$name-seed1"
    done
    for name in "$@"; do
        ! is_attacked "$name-seed1" || continue
        wait_for_a_place
        need 60 "attacks on $study/$name-seed1"
        job "$name-seed1" attack "$name-seed1" "$images" &
    done
    wait
    for name in "$@"; do
        check "$name-seed1" "attacks on $study/$name-seed1"
        is_attacked "$name-seed1" || stop "attacks on $study/$name-seed1"
    done
    tables
}

common=(--norm linf --lr 0.1 --warmup-factor 0.2 --decay-epochs 23/30,28/30 --momentum 0.9 --weight-decay 2e-4)
if [ -n "${SMALL:-}" ]; then
    epochs=${EPOCHS:-2} images=8 large_images=4 sets="digits digits" small=wrn-10-1 large=wrn-10-2 guide=wrn-10-1
    seconds=20 epsilon=0.1 step=(--student wrn-10-1 --batch-size 8 --repeats 1 --device cpu)
    common+=(--epsilon 0.1 --step-size 0.04 --num-steps 2 --batch-size 64 --val-size 137 --limit-train 265)
else
    epochs=${EPOCHS:-30} images=1000 large_images=500 sets="cifar100 cifar10" small=resnet18 large=wrn-34-10
    guide=resnet18-guide seconds=150 epsilon=0.031
    step=(--student wrn-34-10 --guide resnet18-guide --batch-size 128 --precision bf16 --repeats 3)
    common+=(--epsilon 0.031 --step-size 0.007 --num-steps 10 --batch-size 128 --val-size 1000 --precision bf16)
fi
read -r first second <<<"$sets"
read -ra methods <<<"${METHODS:-lbgat0 trades6 at lbgat6}"

for piece in $pieces; do
    case $piece in
        tests)
            ! "$PYTHON" -c 'import pytest' 2>/dev/null ||
                benchmark cuda-tests "$seconds" pytest -q -k cuda -rs tests/engine tests/evaluation
            ;;
        step)
            benchmark "train-step-$large" "$seconds" benchmarks.train_step "${step[@]}" \
                --json "$results/study-gpu-speed/train-step.json"
            ;;
        autoattack)
            benchmark "autoattack-$small" "$seconds" benchmarks.autoattack --n "$large_images" --dataset "$first" \
                --checkpoint "checkpoints/study-gpu-$small/lbgat0-seed1/last.pt" --epsilon "$epsilon" \
                --precision tf32 --out "$results/study-gpu-speed"
            ;;
        resnet18) compare "study-gpu-$small" "$first" "$small" "$images" "${methods[@]}" ;;
        wrn-34-10) compare "study-gpu-$large" "$first" "$large" "$large_images" "${methods[@]:0:2}" ;;
        cifar10) compare "study-gpu-$small-$second" "$second" "$small" "$images" "${methods[@]}" ;;
    esac
done
echo "finished: ${*:-every piece} is in $results/study-gpu-*"
