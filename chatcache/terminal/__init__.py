"""What a terminal sends, understood without a UI toolkit: sequences, keys, layouts, clusters."""
