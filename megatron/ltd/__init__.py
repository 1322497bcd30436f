"""Megatron-LTD: token and layer dropping for pretraining on Megatron-Core.

Importing this package imports neither torch nor Megatron-Core; each submodule brings what it needs.
"""

__version__ = "0.1.0"
