"""Networks: building, loading and saving them, and their image embeddings."""
