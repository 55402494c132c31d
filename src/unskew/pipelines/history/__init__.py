"""History: the archive read again through the same ordering, repeats and kernel as the stream."""
