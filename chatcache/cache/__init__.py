"""What is remembered: K and V of token runs, in memory and on disk, found by exact token ids."""
