"""The data that processes exchange: schemas, chunks, bytes."""
