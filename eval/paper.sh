#!/usr/bin/env bash
# The published protocol (arXiv 2604.14363) on one or more models, its figures beside the measured.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: eval/paper.sh [OPTION...] MODEL...

For each MODEL (a local folder or hub id): fits centroids, then measures centroid cost and TCCD on every
benchmark; prints the figures of arXiv 2604.14363 beside the measured. Several models are also compared in one
page a benchmark. Needs a GPU, a hub, and `pip install ".[faiss,data,report]"`. The same call again goes on after
an interruption; what is finished is kept.

Known differences from the authors' release: another draw of 2,000 images; only a question's own letters compete for
its answer (there A to D always do); MMVP's pictures are found by name (there questions and pictures are
paired in two different orders).

  --out DIR            where everything goes (out/paper)
  --benchmarks LIST    data sources, by commas (blink,mmvp,cv-bench,pope,scienceqa-img,medblink)
  --fit-data SOURCE    images to fit on; the published ones, MS-COCO, by default (detection-datasets/coco)
  --fit-split NAME     their split (train)
  --fit-revision REV   their commit (the published one for the default source, none for another)
  --images N           how many of them (2000)
  --k K                centroids for each modality (256)
  --layers SPEC        where to erase (text=12,vision=16)
  --seed N             of the draw of images and of k-means (42)
  --limit N            questions of each benchmark, at most (all)
  --batch-size N       questions a forward (8)
  --expected MODEL=FILE  a model's figures by task, as the paper's authors release them
                       (demo/fixtures/*_expected.json of github.com/yahskapar/centroid-erasure); repeatable
  --dry-run            print every command, run none
  -h, --help           this text

The programs `tccd` and `python3` are taken from PATH; the variables TCCD and PYTHON name others.
TEXT
}

fail() {
    printf 'eval/paper.sh: %s\n' "$1" >&2
    exit 2
}

coco=detection-datasets/coco
coco_revision=cf0b22332314a937e9dc8a1957b21725430bb41d

out=out/paper
benchmarks=blink,mmvp,cv-bench,pope,scienceqa-img,medblink
fit_data=$coco
fit_split=train
fit_revision=
images=2000
k=256
layers=text=12,vision=16
seed=42
batch_size=8
limit=()
expected=()
models=()
dry_run=

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit ;;
        --dry-run) dry_run=1 && shift && continue ;;
        --*) [ $# -ge 2 ] || fail "$1 needs a value, or is unknown; see --help" ;;
        *) models+=("$1") && shift && continue ;;
    esac
    case $1 in
        --out) out=$2 ;;
        --benchmarks) benchmarks=$2 ;;
        --fit-data) fit_data=$2 ;;
        --fit-split) fit_split=$2 ;;
        --fit-revision) fit_revision=$2 ;;
        --images) images=$2 ;;
        --k) k=$2 ;;
        --layers) layers=$2 ;;
        --seed) seed=$2 ;;
        --batch-size) batch_size=$2 ;;
        --limit) limit=(--limit "$2") ;;
        --expected) expected+=(--expected "$2") ;;
        *) fail "unknown option $1; see --help" ;;
    esac
    shift 2
done
[ ${#models[@]} -gt 0 ] || fail "no MODEL; see --help"
[ -n "$fit_revision" ] || [ "$fit_data" != "$coco" ] || fit_revision=$coco_revision
IFS=, read -ra sources <<<"$benchmarks"

tccd=${TCCD:-tccd}
python=${PYTHON:-python3}
PYTHONPATH=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH # for `eval`, which is not installed

# Prints a command as it can be pasted, and runs it.
run() {
    printf '%q ' "$@"
    printf '\n'
    [ -n "$dry_run" ] || "$@"
}

# run, unless this very command has made the file already, and after what it was made from.
#   once FILE MADE_FROM COMMAND...
once() {
    local file=$1 made_from=$2 command
    shift 2
    command=$(printf '%q ' "$@")
    if [ -z "$dry_run" ] && [ "$file" -nt "$made_from" ] && [ "$(cat "$file.command" 2>/dev/null)" = "$command" ]; then
        printf '# kept: %s\n' "$file"
        return
    fi
    run "$@"
    [ -n "$dry_run" ] || printf '%s\n' "$command" >"$file.command"
}

# A model's or source's name as the name of a folder.
folder() {
    local name=${1%/}
    printf '%s' "${name//[^A-Za-z0-9._-]/-}"
}

for model in "${models[@]}"; do
    place=$out/$(folder "$model")
    bank=$place/bank.safetensors
    once "$bank" /no/such/file "$tccd" fit --model "$model" --data "$fit_data" --split "$fit_split" \
        ${fit_revision:+--data-revision "$fit_revision"} --images "$images" --k "$k" --layers "$layers" \
        --no-vision-mean --seed "$seed" --batch-size "$batch_size" --work-dir "$place/harvest" --out "$bank"
    for source in "${sources[@]}"; do
        measured=$place/$(folder "$source")
        once "$measured/report.json" "$bank" "$tccd" probe replacement --model "$model" --bank "$bank" \
            --data "$source" --layers "$layers" --segments text=all,vision=span --alphas 0,0.1,0.2,0.3,0.4,0.5,0.6,0.8 --alpha-cd 1 --controls --seed "$seed" \
            --batch-size "$batch_size" "${limit[@]}" --resume --out "$measured"
    done
done

reports=()
for source in "${sources[@]}"; do
    name=$(folder "$source")
    of_source=()
    for model in "${models[@]}"; do
        of_source+=("$out/$(folder "$model")/$name")
    done
    reports+=("${of_source[@]}")
    if [ ${#models[@]} -gt 1 ]; then
        run "$tccd" probe compare "${of_source[@]}" --title "$source" --out "$out/compared/$name"
    fi
done
run "$python" -m eval.paper "${expected[@]}" "${reports[@]}"
