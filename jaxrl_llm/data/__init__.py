"""Prompts and answers: sources, tokenizers, chat, batching."""
