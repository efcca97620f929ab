"""Helpers that tests import, ours and those of plugins: tiny models, tokenizers and facts."""
