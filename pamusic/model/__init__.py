"""Integers -> next-token logits: Perceiver AR. Knows torch; knows no music, no tokens, no files."""
