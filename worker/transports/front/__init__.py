"""The listening socket, and the connections on it: WebSockets and event streams."""
