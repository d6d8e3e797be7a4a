"""From logits to text: sampling, structured output, stop strings, assembly from bytes."""
