"""The flags of the step-time benchmark. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.page import CLOCKS, check_clock

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO, SEED, SIZE, Range


@dataclass(frozen=True)
class StepTimeConfig(Settings):
    """step-time benchmark"""

    num_layers: int = flag(12, range=Range(3, 1 << 16), help="transformer layers; all but the first and the last drop")
    hidden_size: int = flag(384, help="width of the hidden states")
    num_attention_heads: int = flag(6, help="attention heads")
    seq_length: int = flag(512, range=Range(4, SIZE.most), help="tokens in a sample")
    micro_batch_size: int = flag(4, help="samples a step")
    vocab_size: int = flag(8192, range=Range(2, SIZE.most), help="vocabulary of all models")
    kept_tokens: tuple[int, ...] = flag(
        (), metavar="K", help="kept tokens to measure (default: a quarter, a half and three quarters of the tokens)"
    )
    block_sizes: tuple[int, ...] = flag(
        (1,), metavar="N", help="measure random-LTD in blocks of these many neighbouring tokens (1: single tokens)"
    )
    executed_layers: tuple[int, ...] = flag(
        (), metavar="N", help="also measure layer dropping, in steps in which this many layers run"
    )
    token_bypass: bool = flag(False, help="also measure TokenBypass: half the tokens bypass the middle, by importance")
    rounds: int = flag(7, help="measured rounds; each is one step of every variant")
    warmup_rounds: int = flag(1, range=COUNT_OR_ZERO, help="rounds before them that are not measured")
    threads: int | None = flag(None, help="CPU threads (default: torch's, one per core)")
    clock: str = flag(
        "wall",
        choices=tuple(CLOCKS),
        help="cpu: CPU time of the process, for a busy machine; needs --threads 1, because waiting threads count too",
    )
    device: str = flag("auto", choices=("auto", "cuda", "cpu"), help="where to compute")
    bf16: bool = flag(False, help="compute in bfloat16, with fp32 main weights")
    transformer_impl: str = flag(
        "auto", choices=("auto", "local", "transformer_engine"), help="kernels of our layers, as in pretrain_gpt_ltd.py"
    )
    seed: int = flag(1234, range=SEED, help="seed of weights, tokens and kept tokens")
    json: str | None = flag(None, metavar="FILE", help="also write all measurements to this file")
    markdown: bool = flag(False, help="print the table and its circumstances as Markdown")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clock(self.clock, self.threads, self.device)
        for kept_tokens in self.kept_tokens:
            if not 1 <= kept_tokens < self.seq_length:
                raise UserError(
                    f"--kept-tokens {kept_tokens}: must be from 1 to --seq-length {self.seq_length} - 1; the dense "
                    "step is measured anyway"
                )
        for block_size in self.block_sizes:
            wrong = [
                kept for kept in (*self.measured_kept_tokens, self.seq_length) if block_size < 1 or kept % block_size
            ]
            if wrong:
                raise UserError(
                    f"--block-sizes {block_size}: must be 1 or more and divide --seq-length and every number of kept "
                    f"tokens, also {wrong[0]}"
                )
        for executed_layers in self.executed_layers:
            if not 1 <= executed_layers < self.num_layers:
                raise UserError(
                    f"--executed-layers {executed_layers}: must be from 1 to --num-layers {self.num_layers} - 1; the "
                    "dense step is measured anyway"
                )
        if self.json is not None and not Path(self.json).absolute().parent.is_dir():
            raise UserError(f"--json {self.json}: there is no folder {Path(self.json).parent}; make it first")

    @property
    def measured_kept_tokens(self) -> tuple[int, ...]:
        """The kept tokens of the random-LTD variants, in the order of the table."""
        return self.kept_tokens or tuple(self.seq_length * quarters // 4 for quarters in (1, 2, 3))
