"""The protocol's own description, made of the structs of frames, answers and errors: JSON Schema, OpenAPI, AsyncAPI,
TypeScript and tables. What is served, printed and written into files is always this.
"""
