"""Export a trained model to a folder that Hugging Face's libraries can load.

    %(prog)s --load runs/random-ltd --output exported/random-ltd

A GPT with learned positions, LayerNorm and GELU becomes a GPT-2; one with RoPE, RMSNorm and SwiGLU becomes a Llama. One
process reads checkpoints of any layout, one tensor at a time.
"""

from __future__ import annotations

from pathlib import Path

from megatron.ltd.export.config import ExportConfig, check_new
from megatron.ltd.flags import read_command
from megatron.ltd.tokenizers.config import TokenizerFiles


def main() -> None:
    """Read the flags, export the checkpoint, and print a summary."""
    config, files = read_command(__doc__, ExportConfig, TokenizerFiles)
    check_new(f"--output {config.output}", Path(config.output))  # before torch is imported, which takes seconds
    from megatron.ltd.parallel.mesh import quiet_core_imports, refuse_broken_transformer_engine

    quiet_core_imports()
    refuse_broken_transformer_engine()
    from megatron.ltd.export.to_hugging_face import export_checkpoint

    print(export_checkpoint(config, files).summary())
