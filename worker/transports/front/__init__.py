"""The listening socket, the server on it, and the long-lived connections: WebSockets and event streams."""
