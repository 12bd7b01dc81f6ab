"""Many controllers at once, cheaply: a stable that forks them, stubs for what they start, and a watcher that trusts nobody."""
