"""What goes with a running scan: its results line by line as records, on the terminal, and as a picture."""
