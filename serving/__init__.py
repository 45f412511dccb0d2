"""Ferry's serving room: a gateway, pools of vLLM engines, and the contexts that move between them."""
