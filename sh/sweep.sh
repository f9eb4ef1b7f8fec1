#!/usr/bin/env bash
# Train a recipe with several seeds, or several values of one flag, and write one table and one picture:
#     bash sh/sweep.sh sh/train_trades6_cifar100_wrn34_10.sh --seeds 1,2,3
#     bash sh/sweep.sh sh/quickstart.sh --values beta=0,2,6 --seeds 1,2
# Runs are Logs/NAME/RUN and checkpoints/NAME/RUN, NAME being --name or the recipe's. Further flags go to every run. The
# same command resumes: finished runs are skipped, an interrupted one resumes from its last.pt.

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
[ $# -gt 0 ] && [ -f "$1" ] && [ "${1%.sh}" != "$1" ] || _fail "pass a recipe and the seeds: bash sh/sweep.sh sh/train_MARK.sh --seeds 1,2,3"
recipe=$1
shift
seeds='' values='' name='' flags=()
while [ $# -gt 0 ]; do
    case $1 in
        --seeds | --values | --name)
            [ $# -gt 1 ] || _fail "$1 needs a value"
            declare "${1#--}=$2"
            shift 2
            ;;
        --seed | --mark | --log-dir | --checkpoint-dir | --seed=* | --mark=* | --log-dir=* | --checkpoint-dir=*)
            _fail "${1%%=*} is set by the sweep: use --seeds 1,2,3 or --name NAME"
            ;;
        *) flags+=("$1") && shift ;;
    esac
done
[ -n "$seeds$values" ] || _fail "pass --seeds 1,2,3 or --values FLAG=A,B,C"
case $values in '' | [a-z]*=?*) ;; *) _fail "--values $values: write FLAG=A,B,C, such as beta=1,3,6" ;; esac
[ -n "$name" ] || { name=$(basename "$recipe" .sh) && name=sweep-${name#train_}; }
case $name in *[!A-Za-z0-9._+-]* | .*) _fail "--name $name names a folder: letters, digits and . _ + - only" ;; esac
flag=${values%%=*}

# Run one training; a mark of the finished command keeps it from running again.
run() {
    local mark=$1 folder=Logs/$name/$1
    shift
    if [ -f "$folder/finished" ] && [ "$(cat "$folder/finished")" = "$recipe $*" ]; then
        echo "$mark: finished before"
        return
    fi
    echo "$mark: $recipe $*"
    bash "$recipe" "$@" --mark "$mark" --log-dir "Logs/$name" --checkpoint-dir "checkpoints/$name" || {
        local status=$?
        case $status in 75 | 130 | 143) echo "stopped at $mark: the same command continues the sweep" >&2 ;; esac
        [ "$status" != 1 ] || echo "in a sweep --name NAME takes the place of --mark" >&2
        exit "$status"
    }
    # Of several processes the status of a stop is 0.
    if grep -hE ' stopped by | finished: ' "$folder/train.log" 2>/dev/null | tail -n 1 | grep -q ' stopped by '; then
        echo "stopped at $mark: the same command continues the sweep" >&2
        exit 75
    fi
    echo "$recipe $*" >"$folder/finished"
}

IFS=, read -ra seed_list <<<"${seeds:-1}"
IFS=, read -ra value_list <<<"${values#*=}"
for seed in "${seed_list[@]}"; do
    if [ -z "$values" ]; then
        run "seed$seed" "${flags[@]+"${flags[@]}"}" --seed "$seed"
        continue
    fi
    for value in "${value_list[@]}"; do
        run "$flag${value//[^A-Za-z0-9._+-]/_}-seed$seed" "${flags[@]+"${flags[@]}"}" "--$flag" "$value" --seed "$seed"
    done
done
exec "$PYTHON" -m report.sweep "Logs/$name" ${flag:+--by "$flag"}
