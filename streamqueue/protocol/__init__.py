"""What is stored in MongoDB, and what is said to it: plain data, with no I/O and no clock."""
