"""Models in GGUF files: their headers, and what transformers makes of them."""
