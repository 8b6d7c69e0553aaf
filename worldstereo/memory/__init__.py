"""The two memories, and the attention between pictures and what is remembered."""
