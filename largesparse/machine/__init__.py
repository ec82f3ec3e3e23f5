"""What the computer is: cores, memory, signals, folders, environment variables, versions."""
