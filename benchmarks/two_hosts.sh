#!/usr/bin/env bash
# Two hosts in one machine: two network namespaces joined by a veth pair, torchrun's rendezvous across them, and a training
# of which one host is stopped (SIGTERM, then kill -9) and which is resumed. Needs root. Prints a log; 0 if all went well.
#
#     bash benchmarks/two_hosts.sh | tee results/two-hosts/log.txt
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
work=$(mktemp -d)
hosts=(lbgat-a lbgat-b)

clean() {
    for host in "${hosts[@]}"; do
        ip netns pids "$host" 2>/dev/null | xargs -r kill -9 2>/dev/null
        ip netns del "$host" 2>/dev/null
    done
    rm -rf "$work"
}
trap clean EXIT

for host in "${hosts[@]}"; do ip netns add "$host" || exit 1; done
ip link add veth-a netns "${hosts[0]}" type veth peer name veth-b netns "${hosts[1]}" || exit 1
for i in 0 1; do
    side=$([ $i = 0 ] && echo a || echo b)
    ip -n "${hosts[i]}" addr add "10.77.0.$((i + 1))/24" dev "veth-$side"
    ip -n "${hosts[i]}" link set "veth-$side" up
    ip -n "${hosts[i]}" link set lo up
done
echo "two hosts: 10.77.0.1 and 10.77.0.2, each with one process"

# start ROUND HOST: the program on one host, with one process; its output goes to WORK/ROUND-HOST.
start() {
    local side=$([ "$2" = 0 ] && echo a || echo b)
    GLOO_SOCKET_IFNAME=veth-$side ip netns exec "${hosts[$2]}" "$PYTHON" -m torch.distributed.run \
        --nnodes=2 --nproc-per-node=1 --node-rank="$2" --rdzv-backend=c10d --rdzv-id="$1" \
        --rdzv-endpoint=10.77.0.1:29500 --rdzv-conf="is_host=$((1 - $2))" --local-addr="10.77.0.$(($2 + 1))" \
        train_lbgat.py --dataset digits --student wrn-10-1 --guide wrn-10-1 --batch-size 64 --num-steps 3 \
        --epochs "$epochs" --eval-size 50 --val-size 50 --limit-train 640 --device cpu --mark two-hosts \
        --log-dir "$work/Logs" --checkpoint-dir "$work/checkpoints" >"$work/$1-$2" 2>&1 &
}

show() { grep -hE "^(two-hosts|epoch|resuming|stopped|finished|warning: saved|error)" "$work/$1-0" "$work/$1-1" | sed "s#$work#WORK#g"; }

# round NAME [SIGNAL]: both hosts; with a signal, it goes to the program of the second host after the first epoch's line.
round() {
    local began=$SECONDS codes=() pids=()
    echo "--- $1"
    for i in 0 1; do start "$1" $i; pids+=($!); done
    if [ $# = 2 ]; then
        until grep -qs "^epoch" "$work/$1-0"; do sleep 0.2; kill -0 "${pids[0]}" 2>/dev/null || break; done
        local victim
        victim=$(ip netns pids "${hosts[1]}" | xargs -r ps -o pid=,args= -p | awk '/train_lbgat/ && !/distributed.run/ {print $1; exit}')
        local at=$SECONDS
        kill "-$2" "$victim"
    fi
    for pid in "${pids[@]}"; do wait "$pid"; codes+=($?); done
    show "$1"
    echo "$1: statuses of torchrun ${codes[*]}, $((SECONDS - ${at:-$began})) s after ${2:-the start}"
    [ -z "$(ip netns pids "${hosts[0]}")$(ip netns pids "${hosts[1]}")" ] || { echo "processes are left over"; return 1; }
    if [ $# = 2 ]; then [ "${codes[0]}" != 0 ]; else [ "${codes[*]}" = "0 0" ] || { tail -n 25 "$work/$1"-*; return 1; }; fi
}

epochs=1 && round one-epoch && epochs=30 && round told-to-stop TERM && round killed KILL &&
    epochs=$(($(grep -c . "$work/Logs/two-hosts/metrics.jsonl") + 2)) && round resumed && echo "all went well"
