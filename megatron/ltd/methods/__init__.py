"""The methods there are. To add one: a folder, its flags, one class with the calls of ``base.Method``, a line here."""

from megatron.ltd.methods.base import Entry
from megatron.ltd.methods.layer_drop.method import LayerDrop, LayerDropConfig
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from megatron.ltd.methods.token_bypass.method import TokenBypass, TokenBypassConfig

METHODS: dict[str, Entry] = {
    "random_ltd": Entry(
        "routing", RandomLTD.title, "--random-ltd", RandomLTDConfig, RandomLTD.build, "ltd_growth_steps"
    ),
    "token_bypass": Entry(
        "routing",
        TokenBypass.title,
        "--token-bypass",
        TokenBypassConfig,
        TokenBypass.build,
        "token_bypass_growth_steps",
    ),  # fmt: skip
    "layer_drop": Entry("depth", LayerDrop.name, "--layer-drop", LayerDropConfig, LayerDrop.build),
}
