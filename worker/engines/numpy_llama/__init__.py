"""The numpy engine: models of the Llama family from GGUF files, on any CPU. `engine` is the port."""
