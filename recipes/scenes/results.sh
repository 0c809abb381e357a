#!/usr/bin/env bash
# The study of docs/results.md: GRPO with three level weightings and continued SFT, three seeds each, from the
# shipped checkpoint. Usage: recipes/scenes/results.sh ARM SEED, with ARM one of uniform, decay, level0, sft.
# Each call trains one run on one thread (so that two fit on two cores) and compares it with the checkpoint on the
# test, unpractised, novel and training prompts. `python -m dina.eval.seeds` then pools the seeds; see docs/results.md.
set -euo pipefail
arm=$1 seed=$2
start=${START:-recipes/scenes/checkpoint}
steps=${STEPS:-180} sft_steps=${SFT_STEPS:-2370}
prompts=recipes/scenes/prompts
out=${OUT:-runs/results}
run=$out/$arm-$seed
export OMP_NUM_THREADS=1
mkdir -p "$out"

grpo() {
  [ -d "$run/checkpoints/step_$steps" ] || dina train scenes/t2i_grpo model.path="$start" run.threads=1 \
    rl.runner=local run.seed="$seed" run.max_steps="$steps" run.save_steps=0 run.output_dir="$run" "$@"
  after=$run/checkpoints/step_$steps
}

case $arm in
  uniform) grpo ;;
  decay) grpo algorithm.level_weights=0.5 ;;
  level0) grpo 'algorithm.level_weights=[1, 0, 0, 0]' ;;
  sft)
    [ -d "$run/final" ] || dina sft scenes/sft_more model.checkpoint="$start" seed="$seed" output_dir="$run" \
      "stages.0.max_steps=$sft_steps"
    after=$run/final ;;
  *) echo "unknown arm $arm" >&2; exit 2 ;;
esac

compare() {  # NAME, then the prompt files; the starting checkpoint is evaluated once per name
  name=$1; shift
  files=()
  for word in "$@"; do
    case $word in --limit | [0-9]*) files+=("$word") ;; *) files+=(--prompts "$prompts/$word.jsonl") ;; esac
  done
  before=$out/before-$name/evaluation.json
  [ -f "$before" ] || dina evaluate "$start" "${files[@]}" --out "$out/before-$name"
  dina compare "$before" "$after" "${files[@]}" --out "$run/$name"
}

compare test test vqa_test
compare unpractised unpractised
compare novel novel
compare train train --limit 64
