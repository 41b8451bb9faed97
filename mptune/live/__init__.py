"""What a running search looks like in a terminal."""
