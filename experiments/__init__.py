"""Running, comparing and writing down experiments."""
