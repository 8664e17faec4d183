"""What the stage `validate` is made of: expectations, shortcuts in metadata, differences between versions, and its page."""
