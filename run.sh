#!/usr/bin/env bash
# The stages of the README in a row, for one task: only calls them, skips what is done, stops at the first failure.
# usage: ./run.sh --downstream speech_commands --unit_model hubert100 [--stage 1] [--stop-stage 6] [options]
#   --date NAME         names the run (default: run)
#   --lm_config NAME    stage 3, without a unit LM: train one by ulm_prompt/config/ulm/NAME.yaml (default: none)
#   --recipe NAME       stage 4 (default: the task's)        --prefix_prompt_length P   stage 4 (default: the task's)
#   --set "KEY=VALUE …" stage 4, knobs of the recipe         --root_path DIR   stage 1, the corpus (default: its config's)
#   --workspace DIR     the folder of data and outputs (default: the repository)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
fail() { echo "error: $*" >&2; exit 2; }

downstream='' unit_model='' stage=1 stop_stage=6 date=run lm_config='' recipe='' prefix_prompt_length='' set='' root_path=''
workspace=$here
while (($#)); do
    name=${1#--}
    name=${name//-/_}
    case $1 in
    --downstream | --unit_model | --stage | --stop-stage | --stop_stage | --date | --lm_config | --recipe | \
        --prefix_prompt_length | --set | --root_path | --workspace) ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;;
    *) fail "$1: unknown; ./run.sh --help" ;;
    esac
    (($# > 1)) || fail "$1: expected a value after it"
    printf -v "$name" %s "$2"
    shift 2
done
[[ $downstream && $unit_model ]] || fail "give --downstream and --unit_model; ./run.sh --help"
[[ $stage$stop_stage =~ ^[1-6][1-6]$ ]] && ((stage <= stop_stage)) ||
    fail "--stage $stage --stop-stage $stop_stage: expected 1 to 6, the first not after the last"
config=$(grep -lE "^downstream: +$downstream( |\$)" "$here"/ulm_prompt/config/*.yaml) ||
    fail "--downstream $downstream: no task in ulm_prompt/config/ reads it"
[[ $config != *$'\n'* ]] || fail "--downstream $downstream: several tasks read it; type the stages instead"
task=$(basename "$config" .yaml)
real() { cd "$1" 2> /dev/null && pwd -P; }
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; } # a Mac has no realpath -m
workspace=$(absolute "$workspace")
[[ $root_path ]] && root_path=$(absolute "$root_path")
python=${PYTHON:-python}
data=$workspace/preprocess/$downstream/data
datasets=$workspace/ulm_prompt/datasets/$unit_model
selection=(--prompt_task "$task" --unit_model "$unit_model")

run() { # a stage script and its flags
    echo "\$ python $*"
    (cd "$here" && "$python" "$@" --workspace "$workspace")
}
done_already() { echo "stage $1: done already"; }
wanted() { ((stage <= $1 && $1 <= stop_stage)); }
newer() { [[ -e $1 && ! $2 -nt $1 ]]; } # the first file is there and was made after the second

if wanted 1; then
    audio=(--downstream "$downstream" --unit_model "$unit_model")
    [[ $root_path ]] && audio+=(--set "datarc.root_path=$root_path")
    rows=$data/$unit_model
    if [[ -e $rows/test && ! -e $rows/quantized ]]; then done_already 1; else # they were quantised elsewhere
        if [[ -e $data/manifest/labels.json ]]; then
            read -r corpus < "$data/manifest/train.tsv"
            [[ ! $root_path || $(real "$root_path") == "$(real "$corpus")" ]] ||
                fail "--root_path $root_path: the manifests in $data/manifest are of $corpus; take another --workspace, or remove them"
        else
            run preprocess/runner.py --action generate_manifest "${audio[@]}"
        fi
        km=$workspace/pretrained_models/${unit_model}_km
        [[ -e $km.npz || -e $km.bin ]] || run preprocess/runner.py --action learn_kmeans "${audio[@]}"
        run preprocess/runner.py --action quantized "${audio[@]}" # itself knows what is done
        newer "$rows/test" "$rows/quantized/provenance.json" || run preprocess/runner.py --action postprocess "${audio[@]}"
    fi
fi
if wanted 2; then
    if newer "$datasets/$downstream/data_freq/test.txt" "$data/$unit_model/test"; then done_already 2; else
        for script in make_data gen_labelspace verbalizer; do run ulm_prompt/$script.py "${selection[@]}"; done
    fi
fi
if wanted 3; then
    if [[ $lm_config && ! -e $workspace/pretrained_models/${unit_model}_lm/checkpoint_best.pt ]]; then
        run ulm_prompt/train_ulm.py --unit_model "$unit_model" --date "$date" --config "$lm_config"
    fi
    if newer "$workspace/ulm_prompt/data-bins/$unit_model/$task-data-bin/sources.json" "$datasets/$downstream/data_freq/test.txt"
    then done_already 3; else run ulm_prompt/fairseq_preprocess.py "${selection[@]}"; fi
fi
if wanted 4; then
    flags=(--date "$date" ${recipe:+--recipe "$recipe"} ${prefix_prompt_length:+--prefix_prompt_length "$prefix_prompt_length"})
    # shellcheck disable=SC2206  # several knobs in one word
    [[ $set ]] && flags+=(--set $set)
    run ulm_prompt/train.py "${selection[@]}" "${flags[@]}" # resumes a run by itself, and knows a finished one
fi
if wanted 5; then
    samples=$workspace/samples/samples_$date/samples_${task}_${unit_model}_$date.json
    if newer "$samples" "$workspace/checkpoints/${task}_${unit_model}_checkpoints_$date/checkpoint_best.pt"
    then done_already 5; else run ulm_prompt/sample.py "${selection[@]}" --model_date "$date" --sample_date "$date"; fi
fi
if wanted 6; then run ulm_prompt/cal_acc.py "${selection[@]}" --sample_date "$date"; fi
