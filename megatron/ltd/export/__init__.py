"""Converts checkpoints to Hugging Face folders and back, one tensor at a time, without building a model."""
