#!/usr/bin/env bash
# KS and IC on quantised corpora that are there already, without a GPU and without a released LM: a small unit LM is
# trained on the corpora's own train units and a text of read speech, then prompted.
# usage: ulm_prompt/published_units.sh WORKSPACE UNIT_MODEL TEXT_DIR
#   WORKSPACE  holds preprocess/{speech_commands,fluent_commands}/data/UNIT_MODEL/{train,valid,test}
#   TEXT_DIR   holds {train,valid}.txt, a line of units each
set -euo pipefail
workspace=${1:?usage: published_units.sh WORKSPACE UNIT_MODEL TEXT_DIR}
unit_model=${2:?usage: published_units.sh WORKSPACE UNIT_MODEL TEXT_DIR}
text=${3:?usage: published_units.sh WORKSPACE UNIT_MODEL TEXT_DIR}
here=$(cd "$(dirname "$0")" && pwd)
date=small
python=${PYTHON:-python}
run() {
    local script=$1
    shift
    "$python" "$here/$script.py" --workspace "$workspace" --unit_model "$unit_model" "$@"
}

run train_ulm --config small --date $date --text "$text/train.txt" --valid_text "$text/valid.txt"
run make_data
run gen_labelspace
run verbalizer
run fairseq_preprocess
# two small models at once, a core each, are faster than one after the other on two
export OMP_NUM_THREADS=1
run train --prompt_task KS --recipe fast --prefix_prompt_length 40 --date $date \
    --set batch_size=32 max_update=5000 &
trap 'kill %1 2>/dev/null || true' EXIT  # when IC fails first
run train --prompt_task IC --recipe fast --prefix_prompt_length 40 --date $date \
    --set max_update=12000
wait %1
unset OMP_NUM_THREADS
run sample --model_date $date --sample_date $date
run cal_acc --sample_date $date
