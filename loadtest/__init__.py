"""Load tests of an OpenAI-compatible endpoint. The instrument itself is not written yet."""
