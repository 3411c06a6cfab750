"""What only tests need: references in NumPy, tiny trainings, checkpoints of others, processes."""
