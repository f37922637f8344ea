"""Images: where they come from, how they are decoded, and the packed store that training reads."""
