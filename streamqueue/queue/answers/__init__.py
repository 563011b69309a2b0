"""What people wait for: the ends of jobs, and how they learn of them."""
