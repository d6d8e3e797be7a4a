"""From messages to token ids: chat templates, quoting, tokenizers."""
