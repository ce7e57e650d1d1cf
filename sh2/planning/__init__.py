"""What a task takes, before it starts: numbers, memory, time."""
