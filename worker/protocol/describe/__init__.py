"""The protocol's own description, made of the structs of frames, answers and errors: JSON Schema, OpenAPI, AsyncAPI,
TypeScript and tables. All that is served, printed and written into files is made here.
"""
