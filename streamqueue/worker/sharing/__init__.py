"""How the queues of a worker share its slots: what each holds, is due, and has waiting."""
