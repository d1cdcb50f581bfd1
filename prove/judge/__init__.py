"""What was asked and answered, and whether the promises were kept."""
