#!/usr/bin/env bash
# GRPO on understanding, alone and beside drawing, from the checkpoint that `dina sft scenes/sft_reasoning` made.
# Usage: recipes/scenes/understanding_results.sh ARM SEED, with ARM one of understanding, mixed.
# Each call trains one run on one thread and compares it with its start on the test questions, descriptions and
# drawings: what one task gains and what the other loses. Greedy answers are in `test`, sampled ones, as rewards see
# them, in `sampled`. `python -m dina.eval.seeds` pools the seeds; docs/understanding.md.
set -euo pipefail
arm=$1 seed=$2
start=${START:-runs/sft_reasoning/final}
steps=${STEPS:-60}
prompts=recipes/scenes/prompts
out=${OUT:-runs/understanding}
run=$out/$arm-$seed
export OMP_NUM_THREADS=1
mkdir -p "$out"

case $arm in
  understanding | mixed) ;;
  *) echo "unknown arm $arm" >&2; exit 2 ;;
esac

[ -d "$run/checkpoints/step_$steps" ] || dina train "scenes/${arm}_grpo" model.path="$start" rl.runner=local run.threads=1 \
  run.seed="$seed" run.max_steps="$steps" run.save_steps=0 run.output_dir="$run"

answers=(--prompts "$prompts/vqa_test.jsonl" --prompts "$prompts/descriptions_test.jsonl")
compare() {  # NAME, then arguments; the start is evaluated once per name
  name=$1; shift
  [ -f "$out/before-$name/evaluation.json" ] || dina evaluate "$start" "$@" --out "$out/before-$name"
  dina compare "$out/before-$name/evaluation.json" "$run/checkpoints/step_$steps" "$@" --out "$run/$name"
}
compare test "${answers[@]}" --prompts "$prompts/test.jsonl"
compare sampled "${answers[@]}" --answer-temperature 1 --n-per-prompt 2
