"""Fresh ideas; may import anything, and nothing imports it."""
