"""The networks: how one is made or loaded, and what its view of a picture is."""
