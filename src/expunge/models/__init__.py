"""Loading, PEFT, forward passes and reference values."""
