"""llama.cpp for GGUF models. `library` loads it or names the missing part, `sampler` draws tokens, `engine` runs it."""
