"""The bundled model, and how it was made: texts to learn from, training, evaluation, export."""
