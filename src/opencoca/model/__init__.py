"""The CoCa network: pure tensors in, named tuples out; it never sees a tokenizer, a path or a rank."""
