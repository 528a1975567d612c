"""`khub engine serve`: the engine behind the HTTP APIs that OpenAI's and Anthropic's clients speak."""
