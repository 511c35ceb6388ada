"""What the machine offers: processes, devices, memory and clocks, the hub, signals, random numbers, files."""
