"""Who may do what on this hub: organizations, users, tokens, quotas, limits, and the log of what they did."""
