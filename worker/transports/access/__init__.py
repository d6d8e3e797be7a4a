"""Who may connect, and as whom: credentials, origins, hosts, guards, CORS."""
