"""Continue a text with a trained model.

    %(prog)s --load runs/random-ltd --prompt "def " --temperature 0.8 --top-k 40

The model and its tokenizer are described by the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from megatron.ltd.checkpoint.files import place_of
from megatron.ltd.evaluation.sampling_config import SamplingConfig
from megatron.ltd.flags import read_command
from megatron.ltd.tokenizers.config import TokenizerFiles


def main() -> None:
    """Read the flags, load the model, and print the prompt and its continuation."""
    print_sample(*read_command(__doc__, SamplingConfig, TokenizerFiles))


def print_sample(config: SamplingConfig, tokenizer_files: TokenizerFiles) -> None:
    """Load the model in one process, and print the prompt and its continuation."""
    from megatron.ltd.parallel.config import ParallelConfig
    from megatron.ltd.parallel.mesh import initialize

    parallel = ParallelConfig(device=config.device)
    with initialize(parallel) as mesh:
        from megatron.ltd.evaluation.decoding import generate_text
        from megatron.ltd.evaluation.load import load_model

        loaded = load_model(Path(place_of(config.load, config.ckpt_step)), tokenizer_files, parallel, mesh)
        for note in loaded.notes:
            print(note)
        print(f"{config.prompt}{generate_text(loaded, config)}")
