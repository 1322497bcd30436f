"""Hugging Face's models in our terms: flags, names and layouts of tensors. Knows nothing of training."""
