#!/usr/bin/env bash
# Makes what benchmarks/policies.py trains policies with: tools/policy_bundles.sh EPISODES BUNDLES TASK...
# EPISODES is the folder `train` of benchmarks/make_episodes.py (--train-noisy 30 --train-random 20), with experts, noisy
# experts and random rollouts of the tasks. For each task: eyes, VIP, UVD, TimeRewarder, its goal form, and goals out of
# the first expert's episode; and once for all of them VIPER and Diffusion Reward, standardised for each task, unless
# VIDEO_MODELS=no. Runs lie in BUNDLES/runs. What is there already is kept; a run that was cut short goes on.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 EPISODES BUNDLES TASK..." >&2; exit 2; }
episodes=$1 bundles=$2
shift 2
v2r=(${V2R:-v2r})
mkdir -p "$bundles/goals" "$bundles/runs"

train() { # NAME METHOD OPTIONS...: a run, unless it is finished; one that was cut short goes on
  local run=$bundles/runs/$1 method=$2
  shift 2
  [ -e "$run.done" ] && return
  if [ -e "$run/run.json" ]; then set -- "$@" --resume; fi
  "${v2r[@]}" train "$method" --out "$run" --cache "$bundles/runs/frames" "$@"
  touch "$run.done"
}
export_to() { # NAME RUN OPTIONS...
  [ -e "$bundles/$1/bundle.json" ] && return
  "${v2r[@]}" export "$bundles/runs/$2" --out "$bundles/$1" --half-weights "${@:3}"
}

for task in "$@"; do
  experts=("$episodes/expert/$task" "$episodes/noisy/$task")
  [ -e "$bundles/eyes-$task/bundle.json" ] ||
    "${v2r[@]}" rl observe --data "${experts[@]}" "$episodes/random/$task" --out "$bundles/eyes-$task"
  train "vip-$task" vip --preset tiny --data "${experts[@]}"
  export_to "vip-$task" "vip-$task"
  export_to "uvd-$task" "vip-$task" --reward uvd
  for form in time time-goal; do
    preset=tiny
    [ $form = time ] || preset=tiny-goal
    train "$form-$task" time-rewarder --preset $preset --negatives '*/random/*' \
      --data "${experts[@]}" "$episodes/random/$task"
    export_to "$form-$task" "$form-$task"
  done
  for reward in vip uvd time-goal; do
    [ -e "$bundles/goals/$reward-$task.safetensors" ] ||
      "${v2r[@]}" goal "$episodes/expert/$task/0.mp4" --model "$bundles/$reward-$task" --executions "${experts[@]}" \
        --out "$bundles/goals/$reward-$task.safetensors"
  done
done

[ "${VIDEO_MODELS:-yes}" = no ] && exit 0
tasks=("$@") demonstrations=("${@/#/$episodes/expert/}")
standardized() { # REWARD: a bundle for each task, its reward with mean 0 and deviation 1 on the task's experts
  export_to "$1" "$1"
  for task in "${tasks[@]}"; do
    [ -e "$bundles/$1-$task" ] && continue
    rm -rf "$bundles/$1-$task.part"
    cp -r "$bundles/$1" "$bundles/$1-$task.part"
    "${v2r[@]}" standardize "$bundles/$1-$task.part" --data "$episodes/expert/$task"
    mv "$bundles/$1-$task.part" "$bundles/$1-$task"
  done
}
train vq vqgan --preset tiny --every 4 --data "${demonstrations[@]}"
train viper viper --preset tiny --tokenizer "$bundles/runs/vq" --every 4 --data "${demonstrations[@]}"
standardized viper
train vqdr vqgan --preset tiny-diffusion-reward --every 8 --data "${demonstrations[@]}"
train diffusion diffusion-reward --preset tiny --tokenizer "$bundles/runs/vqdr" --data "${demonstrations[@]}"
standardized diffusion
