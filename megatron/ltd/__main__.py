"""``python -m megatron.ltd COMMAND``, as ``megatron-ltd COMMAND``; for ``torchrun -m megatron.ltd`` too."""

from __future__ import annotations

from megatron.ltd.commands import main

if __name__ == "__main__":  # not in the processes that preprocessing starts
    main()
