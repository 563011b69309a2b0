"""What a process counts."""
