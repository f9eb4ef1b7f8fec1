#!/usr/bin/env bash
# Which part of LBGAT does what, each alone: the guide's size, whether it learns, the weight of the MSE or a softened KL in
# its place, beta, and the clean forward pass that only moves the BatchNorm statistics.
#     bash sh/ablations.sh digits     # three seeds, epsilon 0.2
#     bash sh/ablations.sh cifar10    # two seeds, epsilon 0.031
# The student is a WRN-10-2 and so is the guide unless said otherwise; the last epoch is measured, clean and under PGD-20 on
# all test images. No epoch or setting is chosen on test images. PRECISION=bf16 halves the time of a processor that
# multiplies bfloat16 matrices in hardware; VARIANTS="lbgat0 mse4" runs these and natural training. A rerun resumes.
# Then the table: results/ablations-DATASET.

dataset=${1:-}
case $dataset in
    digits)
        epochs=40 seeds="1 2 3" epsilon=0.2
        common="--epsilon 0.2 --step-size 0.08 --num-steps 4 --lr 0.1 --warmup-factor 0.2 --decay-epochs 4/5,37/40"
        common+=" --batch-size 32 --weight-decay 2e-4 --val-size 137"
        ;;
    cifar10)
        epochs=8 seeds="1 2" epsilon=0.031
        common="--epsilon 0.031 --step-size 0.007 --num-steps 10 --schedule onecycle --lr 0.2"
        common+=" --batch-size 128 --weight-decay 5e-4 --val-size 1000 --limit-train ${IMAGES:-50000}"
        ;;
    *)
        echo "error: say on what: bash sh/ablations.sh digits, or cifar10" >&2
        exit 2
        ;;
esac
common+=" --precision ${PRECISION:-fp32}"
. "$(dirname "${BASH_SOURCE[0]}")/_study.sh" "ablations-$dataset" "$epochs" 0

variants="natural --method natural
lbgat0 --method lbgat --beta 0 --guide wrn-10-2
beta1 --method lbgat --beta 1 --guide wrn-10-2
beta3 --method lbgat --beta 3 --guide wrn-10-2
beta6 --method lbgat --beta 6 --guide wrn-10-2
beta9 --method lbgat --beta 9 --guide wrn-10-2
smaller --method lbgat --beta 0 --guide wrn-10-1
larger --method lbgat --beta 0 --guide wrn-10-4
frozen --method lbgat-frozen --beta 0 --guide wrn-10-2 --guide-checkpoint checkpoints/$STUDY/natural-seedSEED/last.pt
mse0.25 --method lbgat --beta 0 --mse-weight 0.25 --guide wrn-10-2
mse4 --method lbgat --beta 0 --mse-weight 4 --guide wrn-10-2
kl1 --method lbgat-kl --beta 0 --temperature 1 --guide wrn-10-2
kl4 --method lbgat-kl --beta 0 --temperature 4 --guide wrn-10-2
noclean --method lbgat-no-clean --guide wrn-10-2
trades6 --method trades --beta 6"

lines() { # of every seed, of the named variants
    local name flags seed
    for name in "$@"; do
        flags=$(grep "^$name " <<<"$variants") || { echo "error: sh/ablations.sh has no variant $name" >&2 && exit 2; }
        for seed in ${SEEDS:-$seeds}; do
            echo "$name-seed$seed $epsilon --dataset $dataset --student wrn-10-2 --momentum 0.9 $common --seed $seed" \
                "$(sed "s/^$name //; s/SEED/$seed/" <<<"$flags")"
        done
    done
}

# shellcheck disable=SC2046,SC2086 # names, to be split
rest=$(lines ${VARIANTS:-$(sed '1d; s/ .*//' <<<"$variants")})
lines natural | runs  # the frozen guide
runs <<<"$rest"

exec "$PYTHON" -m results.ablations "Logs/$STUDY" --out "results/$STUDY"
