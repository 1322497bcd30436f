"""Convert a Hugging Face GPT-2 or Llama to a checkpoint for finetuning, evaluation and export with any layout.

``--help`` shows examples and all flags; ``megatron-ltd import`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("import")
