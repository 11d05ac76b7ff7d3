"""GGUF files that other programs, and a package, keep on this machine: one module for each kind."""
