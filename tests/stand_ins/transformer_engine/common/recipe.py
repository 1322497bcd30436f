"""Names of recipes of fp8, which the stand-in does not compute."""

from ..unreached import unreached

DelayedScaling = unreached("DelayedScaling")
Float8CurrentScaling = unreached("Float8CurrentScaling")
Float8BlockScaling = unreached("Float8BlockScaling")
MXFP8BlockScaling = unreached("MXFP8BlockScaling")
NVFP4BlockScaling = unreached("NVFP4BlockScaling")
Format = unreached("Format")
