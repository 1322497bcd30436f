"""Names of fused operations, which only Megatron-Core's fused MLP uses."""

from ..unreached import unreached

FusibleOperation, Sequential = unreached("FusibleOperation"), unreached("Sequential")
GEGLU, GELU, ReGLU, ReLU, SiLU, SwiGLU = map(unreached, ("GEGLU", "GELU", "ReGLU", "ReLU", "SiLU", "SwiGLU"))
