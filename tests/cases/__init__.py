"""Small inputs as real tools write them, made here, with the right values computed beside them."""
