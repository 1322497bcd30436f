#!/usr/bin/env bash
# Turn a corpus into the sentences that BERT is pretrained on.
#
#     bash examples/bert_large/prepare_data.sh corpus.jsonl held_out.jsonl vocab.txt
#     DRY_RUN=1 bash ...                                        show the commands, start nothing
#     TINY=1 bash examples/bert_large/prepare_data.sh           text that Python brings along, and a vocabulary made of it
#
# The texts are JSON lines with a document in each "text"; vocab.txt is a WordPiece vocabulary, such as BERT's own.
# Further flags are those of tools/preprocess_data.py. The tokens and the vocabulary go to runs/bert-large/data of the
# current folder, where pretrain.sh and finetune.sh find them. What is there already stays.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

data="runs/bert-large/data"
[[ "$TINY" != 1 ]] || data="runs/bert-large-tiny/data"
set_up bert
if [[ "$TINY" == 1 ]]; then
    [[ -f "$data/dev.jsonl" ]] || run "$python" "$root/examples/tiny.py" --example bert_large --out "$data"
    set -- "$data/train.jsonl" "$data/valid.jsonl" "$data/words-vocab.txt" "$@"
fi
[[ $# -ge 3 && "$1$2$3" != *--* ]] || refuse "give three files: the text to train on, held-out text, and vocab.txt"
for file in "$1" "$2" "$3"; do
    [[ -f "$file" || "$DRY_RUN" == 1 ]] || refuse "$file: there is no such file"
done
train="$1" valid="$2" vocab="$3"
shift 3

[[ "$DRY_RUN" == 1 ]] || mkdir -p "$data"
there "$data/vocab.txt" "$vocab" || run cp "$vocab" "$data/vocab.txt"
for split in train valid; do
    there "$data/${split}_text_sentence.json" "${!split}" "$@" || run "$python" "$root/tools/preprocess_data.py" \
        --input "${!split}" --output-prefix "$data/$split" --split-sentences --workers 2 --overwrite \
        --tokenizer-type BertWordPieceLowerCase --vocab-file "$data/vocab.txt" "$@"
done
