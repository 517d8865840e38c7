#!/usr/bin/env bash
# Runs the stages of the README in order, for one task. Each stage skips finished work. Stops at the first failure.
# usage: ./run.sh --downstream speech_commands --unit_model hubert100 [--stage 1] [--stop-stage 6] [options]
#   --date NAME         name of the run (default: run)
#   --lm_config NAME    stage 3: if the unit LM is missing, train one with ulm_prompt/config/ulm/NAME.yaml (default: none)
#   --recipe NAME       stage 4 (default: the task's)        --prefix_prompt_length P   stage 4 (default: the task's)
#   --set "KEY=VALUE …" stage 4, knobs of the recipe         --root_path DIR   stage 1, the corpus (default: the config's)
#   --workspace DIR     folder of the data and the outputs (default: the repository)
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
    *) fail "$1: unknown flag; see ./run.sh --help" ;;
    esac
    (($# > 1)) || fail "$1: expected a value"
    printf -v "$name" %s "$2"
    shift 2
done
[[ $downstream && $unit_model ]] || fail "--downstream and --unit_model are required; see ./run.sh --help"
[[ $stage$stop_stage =~ ^[1-6][1-6]$ ]] && ((stage <= stop_stage)) ||
    fail "--stage $stage --stop-stage $stop_stage: expected 1 to 6, and --stage not after --stop-stage"
config=$(grep -lE "^downstream: +$downstream( |\$)" "$here"/ulm_prompt/config/*.yaml) ||
    fail "--downstream $downstream: no task in ulm_prompt/config/ uses it"
[[ $config != *$'\n'* ]] || fail "--downstream $downstream: several tasks use it; run the stages one by one"
task=$(basename "$config" .yaml)
real() { cd "$1" 2> /dev/null && pwd -P; }
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; } # macOS has no realpath -m
workspace=$(absolute "$workspace")
[[ $root_path ]] && root_path=$(absolute "$root_path")
python=${PYTHON:-python}
data=$workspace/preprocess/$downstream/data
selection=(--prompt_task "$task" --unit_model "$unit_model")

run() { # run a stage script in its own process group, so that signals can be forwarded to the whole group
    echo "\$ python $*"
    set -m
    (cd "$here" && exec "$python" "$@" --workspace "$workspace") &
    group=$!
    set +m
    wait "$group"
}
forward() { # the stage handles the signal and ends
    kill -s "$1" -- "-$group" 2> /dev/null || true
    wait || true
    exit $((128 + $2))
}
group=''
trap 'forward HUP 1' HUP
trap 'forward INT 2' INT
trap 'forward TERM 15' TERM
wanted() { ((stage <= $1 && $1 <= stop_stage)); }

if wanted 1; then
    audio=(--downstream "$downstream" --unit_model "$unit_model")
    [[ $root_path ]] && audio+=(--set "datarc.root_path=$root_path")
    rows=$data/$unit_model
    if [[ -e $rows/test && ! -e $rows/quantized ]]; then echo "stage 1: skipped, the rows were quantised elsewhere"; else
        if [[ -e $data/manifest/labels.json ]]; then
            read -r corpus < "$data/manifest/train.tsv"
            [[ ! $root_path || $(real "$root_path") == "$(real "$corpus")" ]] ||
                fail "--root_path $root_path: the manifests in $data/manifest are for $corpus; choose another --workspace, or remove them"
        else
            run preprocess/runner.py --action generate_manifest "${audio[@]}"
        fi
        km=$workspace/pretrained_models/${unit_model}_km
        [[ -e $km.npz || -e $km.bin ]] || run preprocess/runner.py --action learn_kmeans "${audio[@]}"
        for action in quantized postprocess; do run preprocess/runner.py --action $action "${audio[@]}"; done
    fi
fi
if wanted 2; then
    for script in make_data gen_labelspace verbalizer; do run ulm_prompt/$script.py "${selection[@]}"; done
fi
if wanted 3; then
    if [[ $lm_config && ! -e $workspace/pretrained_models/${unit_model}_lm/checkpoint_best.pt ]]; then
        run ulm_prompt/train_ulm.py --unit_model "$unit_model" --date "$date" --config "$lm_config"
    fi
    run ulm_prompt/fairseq_preprocess.py "${selection[@]}"
fi
if wanted 4; then
    flags=(--date "$date" ${recipe:+--recipe "$recipe"} ${prefix_prompt_length:+--prefix_prompt_length "$prefix_prompt_length"})
    # shellcheck disable=SC2206  # $set may contain several knobs
    [[ $set ]] && flags+=(--set $set)
    run ulm_prompt/train.py "${selection[@]}" "${flags[@]}"
fi
if wanted 5; then run ulm_prompt/sample.py "${selection[@]}" --model_date "$date" --sample_date "$date"; fi
if wanted 6; then run ulm_prompt/cal_acc.py "${selection[@]}" --sample_date "$date"; fi
