"""The door for clients: vLLM's own OpenAI application over a pool of remote engine cores."""
