"""What leaves the project: the report, model card and ONNX files of a student, and the GLUE submission."""
