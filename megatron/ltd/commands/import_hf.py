"""Convert a Hugging Face GPT-2 or Llama to a checkpoint for finetuning, evaluation and export with any layout.

    %(prog)s --load gpt2-medium --save runs/gpt2-medium
    %(prog)s --load megatron-lm/checkpoints --save runs/ours --tokenizer-type ...

also converts a GPT of Megatron-LM (torch_dist). Pretraining a GPT with --load and --finetune loads either folder
itself, without this step.
"""

from __future__ import annotations

from pathlib import Path

from megatron.ltd.checkpoint.from_megatron_lm import check_old_format, find_megatron_lm
from megatron.ltd.export.config import ImportConfig, check_free
from megatron.ltd.flags import read_command
from megatron.ltd.tokenizers.config import TokenizerFiles


def main() -> None:
    """Read the flags, convert the model, and print a summary."""
    config, files = read_command(__doc__, ImportConfig, TokenizerFiles)
    check_free(f"--save {config.save}", Path(config.save))  # before torch is imported, which takes seconds
    from megatron.ltd.parallel.mesh import quiet_core_imports, refuse_broken_transformer_engine

    quiet_core_imports()
    refuse_broken_transformer_engine()
    load = Path(config.load)
    check_old_format(load)
    checkpoint = find_megatron_lm(load)
    if checkpoint is None:
        from megatron.ltd.export.from_hugging_face import import_model

        print(import_model(config, files).summary())
    else:
        from megatron.ltd.export.from_megatron_lm import import_megatron_lm

        print(import_megatron_lm(checkpoint, config, files).summary())
