"""Weights in from Hugging Face folders and GGUF, out to Hugging Face."""
