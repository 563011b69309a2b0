"""Running the handlers of claimed jobs: an attempt, its task or thread, and how it ends."""
