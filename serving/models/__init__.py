"""Where models come from, one file per source; `serving.model_store` is the front door."""
