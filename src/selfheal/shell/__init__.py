"""The shell: the one place where the core meets the world. See `shell.running` for how the parts fit."""
