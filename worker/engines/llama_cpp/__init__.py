"""llama.cpp for GGUF models. `library` loads it and says what is missing, `engine` is the port."""
