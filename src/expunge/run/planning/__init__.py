"""What a run will need before it is started: parameters, memory, arithmetic, time. No torch."""
