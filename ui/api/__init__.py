"""Programs as visitors: the app's worlds over HTTP (`http`) and over MCP (`mcp`)."""
