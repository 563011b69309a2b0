"""Several consumer processes of one machine: their supervisor, and who reads for all of them."""
