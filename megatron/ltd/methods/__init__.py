"""The registry of methods: a new one is a folder with its flags and class, and one line here; see CONTRIBUTING.md."""

from megatron.ltd.methods.base import Entry
from megatron.ltd.methods.layer_drop.method import LayerDrop, LayerDropConfig
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from megatron.ltd.methods.token_bypass.method import TokenBypass, TokenBypassConfig

METHODS: dict[str, Entry] = {
    "random_ltd": Entry("routing", RandomLTD.title, "--random-ltd", RandomLTDConfig, RandomLTD.build),
    "token_bypass": Entry("routing", TokenBypass.title, "--token-bypass", TokenBypassConfig, TokenBypass.build),
    "layer_drop": Entry("depth", LayerDrop.name, "--layer-drop", LayerDropConfig, LayerDrop.build),
}
