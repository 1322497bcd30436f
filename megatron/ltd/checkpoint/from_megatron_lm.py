"""Checkpoints of Megatron-LM's own ``pretrain_gpt.py`` in its format ``torch_dist``: which model is in one. No torch.

    DIR/latest_checkpointed_iteration.txt    5
    DIR/iter_0000005/common.pt               a pickle that holds the flags of its run, args
                     .metadata, *.distcp     tensors under Megatron-Core's names, which are ours too
                     metadata.json           the format

``--load DIR --finetune`` takes the weights: ``start`` compares the model with the flags, ``load`` reads the tensors.
``common.pt`` is read with ``inert_pickle``, which runs nothing; optimizer and random state are never opened.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.checkpoint import files
from megatron.ltd.checkpoint.inert_pickle import Constructed, Name, Refused, read_plain_parts
from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.checkpoint.stored_sizes import settings_problem
from megatron.ltd.errors import UserError
from megatron.ltd.flags import from_record
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.small_files import read_small
from megatron.ltd.tokenizers.config import TOKENIZER_TYPES, TokenizerFiles, padded_vocab_size

_GPT = "gpt"
COMMON = "common.pt"
_PICKLE = "data.pkl"
_MOST_BYTES = 1 << 26
_FILES = (COMMON, "metadata.json", files.METADATA)
_POSITIONS = ("learned_absolute", "rope", "none")

_SAME_NAMES = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "group_query_attention", "kv_channels"),
    *("normalization", "swiglu", "add_bias_linear", "qk_layernorm", "attention_dropout", "hidden_dropout"),
    *("init_method_std", "seq_length", "position_embedding_type", "rotary_base", "rotary_percent", "use_rope_scaling"),
)
"""Fields of ``ModelConfig`` that have the same name in args; one that args lack, or that is None, has our default."""
_OTHER_NAMES = {
    "norm_epsilon": ("norm_epsilon", "layernorm_epsilon"),
    "apply_layernorm_1p": ("apply_layernorm_1p", "layernorm_zero_centered_gamma"),
}
"""Fields of ``ModelConfig``, and their names in args of several versions."""

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "num_experts": (),
    "multi_latent_attention": (False,),
    "mtp_num_layers": (0,),
    "squared_relu": (False,),
    "quick_geglu": (False,),
    "rotary_interleaved": (False,),
    "rotary_seq_len_interpolation_factor": (1,),
    "no_rope_freq": (),
    "window_size": (),
    "softmax_type": ("vanilla",),
    "softmax_scale": (),
    "qk_l2_norm": (False,),
    "attention_output_gate": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "experimental_attention_variant": (),
    "heterogeneous_layers_config_path": (),
    "hybrid_layer_pattern": (),
    "hybrid_override_pattern": (),
    "glu_linear_offset": (0,),
    "activation_func_clamp_value": (),
    "use_mup": (False,),
    "enable_mhc_connections": (False,),
    "spec": (),
}
"""Flags of Megatron-LM that make another model, by their names in args, and the values besides None that do not."""


def find_megatron_lm(folder: Path) -> Path | None:
    """The checkpoint of Megatron-LM that ``folder`` is, or the newest in it; None for any other folder.

    In a folder with a checkpoint of this program, one without its files is damaged.
    """
    iterations = files.candidates(folder)
    if any((files.checkpoint_path(folder, iteration) / files.RUN).exists() for iteration in iterations):
        return None
    newest = files.checkpoint_path(folder, iterations[0]) if iterations else folder / "release"
    return next((place for place in (folder, newest) if _is_megatron_lm(place)), None)


def check_old_format(folder: Path) -> None:
    """Raise ``UserError`` for a checkpoint in Megatron-LM's format of before ``torch_dist``."""
    old = next((path for pattern in ("", "*/") for path in folder.glob(f"{pattern}mp_rank_*/*.pt")), None)
    if old is not None:
        raise UserError(
            f"--load {folder}: {old.relative_to(folder)} is a checkpoint in Megatron-LM's old format torch, a pickle "
            "that can run code, and is not opened; convert it with Megatron-LM (--ckpt-convert-format torch_dist "
            "--ckpt-convert-save DIR), and load that with --finetune"
        )


def check_ours(folder: Path) -> None:
    """Raise ``UserError`` for a checkpoint of Megatron-LM where only one of this program can be used."""
    check_old_format(folder)
    found = find_megatron_lm(folder)
    if found is not None:
        raise UserError(
            f"--load {folder}: {found.name} is a checkpoint of Megatron-LM; convert it with tools/import_hf.py, or "
            "pretrain a GPT from it with --finetune"
        )


def _is_megatron_lm(place: Path) -> bool:
    ours = any((place / name).exists() for name in (files.RUN, files.MANIFEST))
    return not ours and all((place / name).is_file() for name in _FILES)


@dataclass(frozen=True)
class MegatronLM:
    """A checkpoint of Megatron-LM, and the flags of its run."""

    checkpoint: Path
    args: Mapping[str, Any]
    """By their names in Megatron-LM; values that are not plain are objects of ``inert_pickle``."""

    @classmethod
    def open(cls, checkpoint: Path) -> MegatronLM:
        """Raises ``UserError`` unless the model in ``checkpoint`` is one of ours."""
        try:
            opened = cls(checkpoint, _read_args(checkpoint))
        except (OSError, Refused) as error:
            raise UserError(
                f"--load {checkpoint}: its {COMMON} cannot be read as Megatron-LM's ({error}); use a complete "
                "checkpoint of Megatron-LM's pretrain_gpt.py, or of this program"
            ) from None
        opened._check_supported()
        return opened

    def flags(self) -> dict[str, dict[str, Any]]:
        """For ``--use-checkpoint-args``: model and tokenizer, by part and field. Raises ``UserError``."""
        self.model()
        return {"model": self.model_flags(), "tokenizer": self.tokenizer_flags()}

    def model_flags(self) -> dict[str, Any]:
        """The model as fields of ``ModelConfig``."""
        args = self.args
        flags = {name: args.get(name) for name in _SAME_NAMES}
        flags |= {name: next((args[key] for key in keys if key in args), None) for name, keys in _OTHER_NAMES.items()}
        if args.get("group_query_attention"):
            flags["num_query_groups"] = args.get("num_query_groups")
        if args.get("use_rope_scaling"):
            flags["rope_scaling_factor"] = args.get("rope_scaling_factor")
        if args.get("position_embedding_type", "learned_absolute") == "learned_absolute":
            flags["max_position_embeddings"] = args.get("max_position_embeddings")
        has_biases = args.get("add_bias_linear") is not False
        flags["add_qkv_bias"] = not has_biases and args.get("add_qkv_bias")
        flags["openai_gelu"] = self._fuses_gelu
        flags["tied_embeddings"] = not args.get("untie_embeddings_and_output_weights")
        return {name: value for name, value in flags.items() if value is not None}

    def tokenizer_flags(self) -> dict[str, Any]:
        """The tokenizer as fields of ``TokenizerConfig``, if it is one of ours, and the padding of its vocabulary."""
        flags = {}
        if self.args.get("tokenizer_type") in {*TOKENIZER_TYPES} - {"NullTokenizer"}:
            names = ("tokenizer_type", "vocab_file", "merge_file", "tokenizer_model")
            flags = {name: self.args[name] for name in names if self.args.get(name) is not None}
            from_record(flags, TokenizerFiles, f"--load {self.checkpoint}", "tokenizer")
        return {**flags, "make_vocab_size_divisible_by": self._divisor}

    def model(self) -> ModelConfig:
        """The model. Raises ``UserError`` if it is impossible, or larger than the tensors."""
        flags = self.model_flags()
        source = f"--load {self.checkpoint}"
        problem = settings_problem(self.checkpoint, {"model": flags, "tokenizer": {"vocab_size": self.vocab_size}})
        if problem is not None:
            raise UserError(f"{source}: its args cannot be used: {problem}; use another checkpoint")
        try:
            return from_record(flags, ModelConfig, source, "model")
        except UserError as error:
            if str(error).startswith(source):
                raise
            raise UserError(f"{source}: its args are not a possible model ({error}); use another checkpoint") from None

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding [tokens], padded."""
        size = self.args.get("padded_vocab_size")
        if type(size) is not int:
            raise UserError(f"--load {self.checkpoint}: its args have no padded_vocab_size; use another checkpoint")
        return size

    def identity(self) -> dict[str, Any]:
        """Settings, by id, that must be equal in a run that takes the weights; the tokenizer is not known."""
        model = self.model()
        return {MODEL: _GPT, **model.identity(self.vocab_size), "norm_epsilon": model.norm_epsilon}

    def check_rest(self, identity: Mapping[str, Any]) -> None:
        """Raise ``UserError`` for what needs another flag here than in Megatron-LM to give the same GPT."""
        if identity.get(MODEL) != _GPT:
            return
        here, there = bool(identity.get("openai_gelu")), self._fuses_gelu
        if here != there and not identity.get("swiglu") and not self.args.get("swiglu"):
            raise UserError(
                f"--openai-gelu: {self.checkpoint} was trained with "
                + (
                    "Megatron-LM's fused GELU, the tanh approximation; add --openai-gelu, which is the same"
                    if there
                    else "the exact GELU (--no-bias-gelu-fusion or --disable-bias-linear); drop --openai-gelu"
                )
            )
        if identity.get("padded_vocab_size") != self.vocab_size:
            raise UserError(
                f"--make-vocab-size-divisible-by: the model's vocabulary is {identity.get('padded_vocab_size')} here "
                f"and {self.vocab_size} in {self.checkpoint}; give {self._divisor}, to which Megatron-LM padded it, or "
                f"--vocab-size {self.vocab_size}"
            )

    @property
    def _fuses_gelu(self) -> bool:
        """Whether Megatron-Core's kernel of bias and GELU was used, which is the tanh approximation."""
        args = self.args
        return bool(args.get("bias_gelu_fusion") and args.get("add_bias_linear", True) and not args.get("swiglu"))

    @property
    def _divisor(self) -> int:
        """What Megatron-LM padded the vocabulary to a multiple of."""
        each, ranks = (self.args.get(name) for name in ("make_vocab_size_divisible_by", "tensor_model_parallel_size"))
        if type(each) is not int or type(ranks) is not int or each < 1 or ranks < 1:
            return 1
        return each * ranks if padded_vocab_size(self.vocab_size, each * ranks, 1) == self.vocab_size else 1

    def _check_supported(self) -> None:
        for name, harmless in _UNSUPPORTED.items():
            value = self.args.get(name)
            if value is not None and not any(value is same or value == same for same in harmless):
                raise self._refusal(name, value)
        positions = self.args.get("position_embedding_type", _POSITIONS[0])
        if positions not in _POSITIONS:
            raise self._refusal("position_embedding_type", positions)

    def _refusal(self, name: str, value: Any) -> UserError:
        shown = "" if value is True else f" {value}" if isinstance(value, (str, int, float)) else " ..."
        return UserError(
            f"--load {self.checkpoint}: was trained with --{name.replace('_', '-')}{shown}, which this program does "
            "not have; use a checkpoint of a model without it"
        )


def _read_args(checkpoint: Path) -> dict[str, Any]:
    """The flags in the file that ``torch.save`` wrote, an uncompressed ZIP archive. Raises ``Refused``, ``OSError``."""
    content = read_small(checkpoint / COMMON, _MOST_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == _PICKLE]
            if len(found) != 1 or found[0].compress_type != zipfile.ZIP_STORED or found[0].file_size > len(content):
                raise Refused(f"it does not hold one {_PICKLE}")
            values = read_plain_parts(archive.read(found[0]))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Refused(f"it is not a file of torch.save ({type(error).__name__})") from None
    args = values.get("args") if isinstance(values, dict) else None
    if not isinstance(args, Constructed) or args.maker != Name("argparse", "Namespace"):
        raise Refused("it holds no args")
    if not isinstance(args.state, dict):
        raise Refused("its args have no values")
    return args.state
