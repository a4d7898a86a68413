"""What came from somewhere else: files of tensors and configs are read without running or reading anything that they name."""
