"""selfheal watches services, decides when one has really failed, repairs them, and proves the repair."""
