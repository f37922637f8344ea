"""From trained networks to one ONNX file, and from images to embeddings through it."""
