"""An HTTP/1.1 client core that keeps bytes and instants, and understands them only after the run."""
