"""Who may connect, and as whom: credentials, what is signed with them, hosts and origins, CORS, and the guards."""
