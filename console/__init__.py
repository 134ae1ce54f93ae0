"""What people touch: the command line, the demo, and the embedded servers that it and the tests run on."""
