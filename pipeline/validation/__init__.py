"""Building blocks of the stage `validate`: expectations, the shortcut audit, differences between data versions, and the report page."""
