"""The data that processes exchange: schemas, chunks of items, and their encoding as bytes."""
