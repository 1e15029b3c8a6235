"""Images on their way to a step: data sets, files, decoding, views and batches."""
