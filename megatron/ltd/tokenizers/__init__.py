"""Tokenizers: text to token ids and back, each defined by local files (or by nothing, for bytes)."""
